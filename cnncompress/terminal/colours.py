"""Colours on a terminal that has them. The words are the same everywhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

STYLES = {
    r"(?m)^.+\n(?=-+( +-+)*$)": "bold",  # the headers of a table
    r"(?m)^-+( +-+)*$": "dim",
    r"\b0\.\d+×(?!\d)": "green",  # a share of the original, and no size of a kernel
    r"\b(?!1\.0+×)[1-9]\d*\.\d+×(?!\d)": "yellow",
    r"\bwithin noise\b": "dim",
    r"\b(not faster than|slower than)\b": "yellow",
}


def has_colours() -> bool:
    """Whether standard output is a terminal that shows colours, and nobody wants none (NO_COLOR)."""
    return sys.stdout.isatty() and _shows_colours(_console())


def write_coloured(text: str, console: Console | None = None) -> None:
    """Print lines without control characters, the parts of `STYLES` in colour; nothing in them is markup."""
    from rich.text import Text

    shown = Text(text)
    for pattern, style in STYLES.items():
        shown.highlight_regex(pattern, style)
    (console or _console()).print(shown, soft_wrap=True)


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


def _shows_colours(console: Console) -> bool:
    return console.color_system is not None and not console.no_color
