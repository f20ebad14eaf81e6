"""Printing that never fails: a terminal that lacks a character gets the nearest plain one, a closed stream nothing."""

from __future__ import annotations

import codecs
import os
import sys
from pathlib import Path

PLAIN = {
    "–": "-",
    "—": "-",
    "×": "x",
    "→": "->",
    "≤": "<=",
    "≥": ">=",
    "²": "^2",
    "…": "...",
    "’": "'",
    "·": ".",
    "█": "#",
    "Δ": "D",
    "Σ": "S",
    "─": "-",
    "│": "|",
}
HANDLER = "cnncompress-plain"


def plain(error: UnicodeError) -> tuple[str, int]:
    """What stands for the characters that an encoding lacks; how codecs calls it on an error."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(PLAIN.get(c, "?") for c in error.object[error.start : error.end]), error.end


def make_printable() -> None:
    """Have stdout and stderr take every character, whatever their encoding."""
    codecs.register_error(HANDLER, plain)
    for stream in (sys.stdout, sys.stderr):
        if (reconfigure := getattr(stream, "reconfigure", None)) is not None:
            reconfigure(errors=HANDLER)


def open_closed() -> None:
    """Have streams that the program was started without, as by `2>&-`, take what is written to them, for nobody.

    A file that is opened later would else have the number of one, and have in it what other libraries print.
    """
    for name in ("stdin", "stdout", "stderr"):  # in the order of their numbers: a file gets the lowest that is free
        if getattr(sys, name) is None:
            nobody = Path(os.devnull).open("r" if name == "stdin" else "w", encoding="utf-8")  # noqa: SIM115 (stays)
            setattr(sys, name, nobody)
