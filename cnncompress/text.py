"""Text from files and other people's code, made safe to print. No torch."""

from __future__ import annotations

import json
import re
from typing import Any

FORMULA_STARTS = tuple("=+-@＝＋－＠")  # what a spreadsheet starts to compute at
QUOTED_CHARACTERS = 80  # characters of a value that a message shows


def plain(text: str) -> str:
    """`text` on one line without characters that a terminal obeys: blanks for white space, nothing for the rest.

    What goes are control characters (C0, DEL and C1), bidirectional overrides and other format characters, lone
    surrogates and line separators.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " * c.isspace() for c in text)


def plain_values(value: Any) -> Any:
    """JSON values with `plain` texts: keys and values, at every depth."""
    if isinstance(value, dict):
        return {plain(key): plain_values(v) for key, v in value.items()}
    if isinstance(value, list):
        return [plain_values(v) for v in value]
    return plain(value) if isinstance(value, str) else value


def plain_lines(text: str) -> str:
    """As `plain`, but line feeds stay."""
    return "\n".join(map(plain, text.split("\n")))


def escaped_json(text: str) -> str:
    """JSON with the characters that a terminal obeys as escapes, which say the same."""
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def markdown(text: str) -> str:
    """Plain text for Markdown: no column, element, link or picture begins in it."""
    return plain(text).replace("|", "\\|").replace("<", "&lt;").replace("](", "]\\(")


def csv_cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: text that starts as one gets an apostrophe, numbers stay."""
    if not isinstance(value, str):
        return value
    shown = plain(value)
    number = re.fullmatch(r"[+-]?\d+(\.\d*)?(e[+-]?\d+)?", shown, re.ASCII | re.IGNORECASE)
    return f"'{shown}" if not number and shown.lstrip()[:1] in FORMULA_STARTS else shown


def quote(value: Any) -> str:
    """A value from a file as a message shows it: plain, and cut where it is long."""
    shown = plain(repr(value))
    return shown if len(shown) <= QUOTED_CHARACTERS else f"{shown[:QUOTED_CHARACTERS]}…"


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type, plain and cut where it is long."""
    lines = (line.strip() for line in str(error).splitlines())
    return plain(next((line for line in lines if line), type(error).__name__))[: 10 * QUOTED_CHARACTERS]
