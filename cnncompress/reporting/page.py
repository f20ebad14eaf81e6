"""A page of HTML that needs nothing but itself: sections of charts, tables, sentences and commands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cnncompress
from cnncompress.reporting import svg
from cnncompress.reporting.palette import DARK, LIGHT, SERIES
from cnncompress.text import plain_lines

NARROW = (340, 300)  # pixels of a chart on a phone, where that of a wide screen would have small letters
DOTS = re.compile(r"(?<=\w)\.(?=[^\W\d])|(?<=[^\W\d])\.(?=\w)")  # between parts of a name, a word among them
Cell = Any  # text, which is escaped, or a picture made by `svg`, which is not


@dataclass(frozen=True)
class Drawn:
    """A chart in both widths, what it is of, and its legend: marks and names."""

    wide: Cell
    narrow: Cell
    caption: str
    legend: tuple[tuple[Cell, str], ...] = ()


@dataclass(frozen=True)
class Table:
    """Cells under headers, the names of the rows first. `words` has the class of columns of words, "" of numbers."""

    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    words: Sequence[str] = ()
    title: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a page under its heading; `small` charts stand closer, commands are what they do and their text."""

    title: str
    text: str = ""
    charts: Sequence[Drawn] = ()
    small: Sequence[Drawn] = ()
    tables: Sequence[Table] = ()
    sentences: Sequence[str] = ()
    commands: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Tile:
    """A number to see first, what it is of, and what it comes from."""

    name: str
    value: str
    detail: str


@dataclass(frozen=True)
class Page:
    """All of a page; `summary` are its first sentences, `warnings` what must be known before the numbers."""

    title: str
    summary: Sequence[str] = ()
    tiles: Sequence[Tile] = ()
    lead: str = ""
    warnings: Sequence[str] = ()
    sections: Sequence[Section] = field(default_factory=list)

    def html(self) -> str:
        """The page; every text in it is escaped, and it names no place that anything could be fetched from."""
        from jinja2 import Environment, PackageLoader, StrictUndefined

        environment = Environment(
            loader=PackageLoader("cnncompress.reporting"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            finalize=_shown,
        )
        environment.filters["breakable"] = breakable
        template = environment.get_template("page.html.j2")
        footer = f"Written by cnncompress {cnncompress.__version__}. 1 MAC is a multiply-accumulate of one image."
        return template.render(vars(self), footer=footer, light=LIGHT, dark=DARK, series=SERIES)


def _shown(value: Any) -> Any:
    """Text without characters that change how it is read; markup as it is."""
    return plain_lines(value) if type(value) is str else value


def breakable(cell: Cell) -> Cell:
    """A text whose dotted names may be broken after their dots, numbers not; a picture as it is."""
    from markupsafe import Markup, escape

    return Markup(DOTS.sub(".<wbr>", escape(_shown(cell)))) if type(cell) is str else cell


def drawn(chart: svg.Chart, caption: str, numbered: bool = True) -> Drawn:
    """A chart with a legend that numbers its series where there are several."""
    from markupsafe import Markup

    several = len(chart.series) > 1
    shown = svg.numbered(chart) if several and numbered else chart
    wide = svg.draw(shown).replace('class="chart"', 'class="chart wide"', 1)
    narrow = svg.draw(shown, *NARROW).replace('class="chart"', 'class="chart narrow"', 1)
    names = [f"{i} {s.name}" if numbered else s.name for i, s in enumerate(chart.series, 1)] if several else []
    legend = tuple((Markup(svg.swatch(i)), name) for i, name in enumerate(names))
    return Drawn(Markup(wide), Markup(narrow), caption, legend)


def with_bars(text: str, values: Sequence[float], most: float) -> Cell:
    """A cell of a number with a bar below it, or with two of before and after, as shares of `most`."""
    from markupsafe import Markup, escape

    return Markup("{}{}").format(escape(text), Markup(svg.bars(values, most)))
