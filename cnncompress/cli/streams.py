"""Printing that never fails: a terminal that lacks a character gets the nearest plain one."""

from __future__ import annotations

import codecs
import sys

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
