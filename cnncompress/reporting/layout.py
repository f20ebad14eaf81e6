"""Tables that fit the terminal: columns wrap, and the narrower of several layouts is taken."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial

from tabulate import tabulate

from cnncompress.text import markdown, plain

NARROWEST = 12  # columns of characters that a wrapped cell keeps
AS_NEEDED = 1000  # columns of characters of a cell that is only wrapped where its table is too wide
PIECES = re.compile(r"[^.]*\.+|[^.]+$")  # of a dotted name


def terminal_width() -> int | None:
    """The columns of the terminal, also as COLUMNS says; None where the output goes to a file or a pipe."""
    with suppress(OSError, ValueError, AttributeError):
        if os.environ.get("COLUMNS", "").isdigit() or sys.stdout.isatty():
            return max(40, shutil.get_terminal_size().columns)
    return None


def table(
    headers: Sequence[str],
    rows: Iterable[Sequence[str]],
    alignment: str,
    format: str = "table",
    widths: Sequence[int | None] | None = None,
    limit: int | None = None,
) -> str:
    """A table for the terminal or in Markdown; `alignment` has an l or an r a column.

    For the terminal, `widths` wraps columns (None: as wide as they are), and those shrink until lines have at most
    `limit` characters, where that is possible. A cell may have several lines. A dotted name that is longer than its
    column is broken after dots.
    """
    rows = [[_plain(cell) for cell in row] for row in rows]
    if format == "markdown":
        return _draw(headers, [[markdown(cell) for cell in row] for row in rows], alignment, "pipe")
    limits = [_as_needed(column, width) for column, width in zip(_columns(headers, rows), widths or [], strict=False)]
    limits += [None] * (len(headers) - len(limits))
    while True:
        cells = [[_fill(cell, width) for cell, width in zip(row, limits, strict=True)] for row in rows]
        text = _draw(headers, cells, alignment, "simple")
        excess = widest(text) - limit if limit else 0
        wrapped = [width for width in limits if width is not None and width > NARROWEST]
        if excess <= 0 or not wrapped:
            return text
        limits[limits.index(max(wrapped))] = max(wrapped) - 1


def fitting(layouts: Sequence[Callable[[], str]], limit: int | None) -> str:
    """The first of several drawings whose lines have at most `limit` characters, or the last."""
    for draw in layouts:
        text = draw()
        if limit is None or widest(text) <= limit:
            break
    return text


def named(draw: Callable[[Sequence[int | None]], str], widths: Sequence[int | None], limit: int | None) -> str:
    """A table with names in its first column, which are broken after dots only where it does not fit otherwise."""
    return fitting([partial(draw, widths), partial(draw, [AS_NEEDED, *widths[1:]])], limit)


def fill(text: str, width: int | None) -> str:
    """`text` in lines of at most `width` columns where its words allow; None leaves it as it is."""
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False) if width else text


def widest(text: str) -> int:
    """The characters of the longest line."""
    return max(map(len, text.splitlines()), default=0)


def _columns(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[row[i] for row in rows] for i in range(len(headers))]


def _as_needed(column: Sequence[str], width: int | None) -> int | None:
    """`width`, but no more than the longest cell takes."""
    return None if width is None else min(width, max((widest(cell) for cell in column), default=width))


def _plain(cell: str) -> str:
    return "\n".join(plain(line) for line in cell.split("\n"))


def _fill(cell: str, width: int | None) -> str:
    lines = "\n".join(fill(line, width) for line in cell.split("\n")).split("\n")
    return "\n".join(line if width is None or len(line) <= width else _break_name(line, width) for line in lines)


def _break_name(name: str, width: int) -> str:
    """A dotted name in lines of at most `width` characters, where its parts allow."""
    lines = [""]
    for piece in PIECES.findall(name):
        if lines[-1] and len(lines[-1] + piece) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(lines)


def _draw(headers: Sequence[str], cells: list[list[str]], alignment: str, style: str) -> str:
    align = [{"l": "left", "r": "right"}[a] for a in alignment]
    return tabulate(cells, headers, style, colalign=align if cells else None, disable_numparse=True)
