"""Text from files and other people's code, made safe to print. No torch."""

from __future__ import annotations

from typing import Any

QUOTED = 80  # characters of a value that a message shows


def plain(text: str) -> str:
    """`text` on one line without characters that a terminal obeys: blanks for white space, nothing for the rest.

    What goes are control characters (C0, DEL and C1), bidirectional overrides and other format characters, lone
    surrogates and line separators.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " * c.isspace() for c in text)


def plain_lines(text: str) -> str:
    """As `plain`, but line feeds stay."""
    return "\n".join(map(plain, text.split("\n")))


def quote(value: Any) -> str:
    """A value from a file as a message shows it: plain, and cut where it is long."""
    shown = plain(repr(value))
    return shown if len(shown) <= QUOTED else f"{shown[:QUOTED]}…"


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type, plain and cut where it is long."""
    lines = (line.strip() for line in str(error).splitlines())
    return plain(next((line for line in lines if line), type(error).__name__))[: 10 * QUOTED]
