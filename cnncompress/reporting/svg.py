"""Charts as SVG: points and lines over two axes, and bars in a line. Colours are classes that the page defines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

from cnncompress.reporting.palette import SERIES
from cnncompress.text import plain

LEFT, RIGHT, TOP, BOTTOM = 84, 16, 14, 46  # pixels around the axes
TEXT = 13  # pixels of a line of text
MARK = 5  # pixels from the middle of a mark to its edge
SHAPES = ("circle", "square", "triangle", "diamond")
TICKS = 5  # about as many on an axis
LEAST_DIGITS, MOST_DIGITS = 3, 12  # of a number on an axis


@dataclass(frozen=True)
class Dot:
    """A point with what it is, and half the height of its error bar."""

    x: float
    y: float
    label: str
    error: float = 0.0
    number: str = ""


@dataclass(frozen=True)
class Series:
    """Points of one colour and shape, joined by a line where `line` is set."""

    name: str
    dots: tuple[Dot, ...]
    line: bool = False


@dataclass(frozen=True)
class Chart:
    """Series over two axes; logarithmic axes take positive values only. `summary` tells in words what it shows.

    No value of y is above `most`.
    """

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    summary: str = ""
    log_x: bool = False
    log_y: bool = False
    most: float = math.inf


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` on pixels from `start` to `end`; on a `whole` one values are counts."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    whole: bool = False

    def place(self, value: float) -> float:
        """The pixel of a value."""
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self) -> list[float]:
        """Round values within the axis."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1,) if len(decades) > 4 else (1, 2, 5)
            return [v for d in decades for s in steps if self.low <= (v := s * 10.0**d) <= self.high]
        step = max(_step((self.high - self.low) / TICKS), 1.0 if self.whole else 0.0)
        first = math.ceil(self.low / step - 1e-9)
        count = math.floor(self.high / step + 1e-9) - first + 1
        return [(first + i) * step for i in range(count)]


def _step(width: float) -> float:
    """1, 2 or 5 times a power of ten, and at least `width`."""
    power = 10.0 ** math.floor(math.log10(width))
    return next(s * power for s in (1, 2, 5, 10) if s * power >= width * (1 - 1e-9))


def _axis(values: Sequence[float], start: float, end: float, log: bool) -> Axis:
    """The axis that has room for some values and a margin."""
    low, high = min(values), max(values)
    if log:
        return Axis(low / 1.5, high * 1.5, start, end, True)
    margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return Axis(max(low - margin, min(0.0, low)), high + margin, start, end)


def draw(chart: Chart, width: int = 720, height: int = 380) -> str:
    """The chart as an SVG element of its own; it has a name, and every point one, for those who do not see it."""
    dots = [dot for series in chart.series for dot in series.dots]
    x = _axis([dot.x for dot in dots], LEFT, width - RIGHT, chart.log_x)
    x = replace(x, whole=all(dot.x == int(dot.x) for dot in dots))
    ends = [dot.y + sign * dot.error for dot in dots for sign in (-1, 1)]
    y = _axis(ends, height - BOTTOM, TOP, chart.log_y)
    y = replace(y, high=min(y.high, chart.most))
    parts = [*_axes(chart, x, y, width, height)]
    for place, series in enumerate(chart.series):
        parts += _series(series, place, x, y)
    name = escape(plain(f"{chart.title}. {chart.summary}".strip()), quote=True)
    head = f'<svg class="chart" role="img" viewBox="0 0 {width} {height}" aria-label="{name}">'
    return "".join([head, f"<title>{escape(plain(chart.title))}</title>", *parts, "</svg>"])


def _axes(chart: Chart, x: Axis, y: Axis, width: int, height: int) -> list[str]:
    parts = []
    ticks, most = x.ticks(), max(2, int((x.end - x.start) // 60))
    ticks = ticks[:: math.ceil(len(ticks) / most)]
    for value, word in zip(ticks, numbers(ticks), strict=True):
        at = x.place(value)
        parts.append(f'<path class="grid" d="M{at:.1f} {y.start:.1f}V{y.end:.1f}"/>')
        parts.append(_text(at, y.start + 17, word, "middle"))
    ticks = y.ticks()
    for value, word in zip(ticks, numbers(ticks), strict=True):
        at = y.place(value)
        parts.append(f'<path class="grid" d="M{x.start:.1f} {at:.1f}H{x.end:.1f}"/>')
        parts.append(_text(x.start - 6, at + 4, word, "end"))
    parts.append(f'<path class="axis" d="M{x.start:.1f} {y.end:.1f}V{y.start:.1f}H{x.end:.1f}"/>')
    parts.append(_text((x.start + x.end) / 2, height - 8, chart.x_label, "middle"))
    middle = (y.start + y.end) / 2
    turned = f' transform="rotate(-90 13 {middle:.1f})"'
    return [*parts, _text(13, middle, chart.y_label, "middle", turned)]


def _series(series: Series, place: int, x: Axis, y: Axis) -> list[str]:
    colour, parts = f"c{place % SERIES}", []
    at = [(x.place(dot.x), y.place(dot.y), dot) for dot in series.dots]
    if series.line and len(at) > 1:
        path = "L".join(f"{px:.1f} {py:.1f}" for px, py, _ in at)
        parts.append(f'<path class="joined {colour}" d="M{path}"/>')
    for px, py, dot in at:
        parts.append(f"<g><title>{escape(plain(dot.label))}</title>")
        if dot.error:
            top, foot = y.place(dot.y + dot.error), y.place(dot.y - dot.error)
            bar = f"M{px - 4:.1f} {top:.1f}h8M{px:.1f} {top:.1f}V{foot:.1f}M{px - 4:.1f} {foot:.1f}h8"
            parts.append(f'<path class="error {colour}" d="{bar}"/>')
        parts.append(f'<path class="mark {colour}" d="{outline(place, px, py)}"/>')
        if dot.number:
            parts.append(_text(px + 8, py - 7, dot.number, "start"))
        parts.append("</g>")
    return parts


def outline(place: int, x: float, y: float, r: float = MARK) -> str:
    """The outline of the mark of a series: shapes change with colours, for those who do not tell these apart."""
    shape = SHAPES[place % len(SHAPES)]
    if shape == "circle":
        return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z"
    corners = {
        "square": ((-r, -r), (r, -r), (r, r), (-r, r)),
        "triangle": ((0, -r), (r, r), (-r, r)),
        "diamond": ((0, -r - 1), (r + 1, 0), (0, r + 1), (-r - 1, 0)),
    }[shape]
    return "M" + "L".join(f"{x + dx:.1f} {y + dy:.1f}" for dx, dy in corners) + "z"


def swatch(place: int) -> str:
    """The mark of a series by itself, for a legend that names it in words."""
    path = f'<path class="mark c{place % SERIES}" d="{outline(place, 8, 8)}"/>'
    return f'<svg class="swatch" viewBox="0 0 16 16" aria-hidden="true">{path}</svg>'


def bars(values: Sequence[float], most: float) -> str:
    """One bar, or two of before and after, as shares of `most`. The numbers stand beside them."""
    kinds, height = (("after",), 16) if len(values) == 1 else (("before", "after"), 8)
    widths = [100 * value / most if most else 0.0 for value in values]
    drawn = "".join(
        f'<rect class="{kind}" y="{9 * i}" width="{width:.2f}" height="{height}"/>'
        for i, (kind, width) in enumerate(zip(kinds, widths, strict=True))
    )
    return f'<svg class="bars" viewBox="0 0 100 17" preserveAspectRatio="none" aria-hidden="true">{drawn}</svg>'


def numbers(values: Sequence[float]) -> list[str]:
    """Short numbers for an axis, with as many digits as tell them apart: 94.36, 94.38."""
    told = ([number(value, digits) for value in values] for digits in range(LEAST_DIGITS, MOST_DIGITS + 1))
    return next((words for words in told if len({*words}) == len({*values})), [number(v, MOST_DIGITS) for v in values])


def number(value: float, digits: int = LEAST_DIGITS) -> str:
    """A short number for an axis: 0.25, 12, 173M."""
    size = abs(value)
    for unit, power in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if size >= power:
            return f"{value / power:.{digits}g}{unit}"
    return f"{value:.{digits}g}" if size >= 0.001 or size == 0 else f"{value:.0e}"


def numbered(chart: Chart) -> Chart:
    """The chart with the series numbered from 1 at their points, as a legend names them."""
    named = [
        replace(series, dots=tuple(replace(dot, number=str(i)) for dot in series.dots))
        for i, series in enumerate(chart.series, 1)
    ]
    return replace(chart, series=tuple(named))


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    words = escape(plain(text))
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{TEXT}"{more}>{words}</text>'
