"""The page of an exploration: the curve of budgets, what was measured, and the commands to choose from."""

from __future__ import annotations

from cnncompress.reporting.accuracy import change_words
from cnncompress.reporting.chart_file import chart_file
from cnncompress.reporting.curve import Curve, Point
from cnncompress.reporting.exploration import LEFT, Exploration, commands, curve_table, notes_of, picks
from cnncompress.reporting.page import Page, Section, Table, drawn
from cnncompress.reporting.svg import Chart, Dot, Series

Captioned = tuple[Chart, str]
WORDS = ("budget", "")  # headers of columns of words


def exploration_page(found: Exploration) -> str:
    """An exploration as a page of HTML."""
    sections = [_section(curve) for curve in found.curves]
    sections.append(Section("Commands", text="Each makes one of these networks.", commands=commands(found)))
    sections.append(Section("Notes", sentences=notes_of(found)))
    summary = [pick.words for curve in found.curves for pick in picks(curve)]
    return Page(f"{found.name}: what each budget costs", summary, sections=sections).html()


def _section(curve: Curve) -> Section:
    headers, cells, _ = curve_table(curve)
    words = ["l" if header in WORDS else "" for header in headers]
    named = [header or "stands out" for header in headers]
    caption = "Shares of the original; predicted rise and divergence in nats an image"
    title = f"Budgets of {LEFT[curve.cost]}"
    charts = [one for one in (_predicted(curve), _accuracy(curve), _agreement(curve)) if one is not None]
    table = Table(f"{caption}, {title.lower()}", named, cells, words)
    return Section(title, charts=[drawn(*one) for one in charts], tables=[table])


def exploration_picture(found: Exploration) -> str:
    """A chart for each cost as an SVG file: measured accuracy, or where there is none the predicted rise."""
    made = [_accuracy(curve) or _predicted(curve) for curve in found.curves]
    return chart_file([chart for chart, _ in filter(None, made)])


def _predicted(curve: Curve) -> Captioned | None:
    """The predicted rise of the loss by share."""
    dots = tuple(
        Dot(point.share, point.rise, f"{point.budget}: predicted {point.rise:.3g} nats")
        for point in curve.reached
        if point.rise is not None and point.rise > 0
    )
    if len(dots) < 2:
        return None
    return _captioned(curve, "Predicted rise of the loss", "nats an image", Series("predicted", dots, line=True))


def _accuracy(curve: Curve) -> Captioned | None:
    """Measured top-1 by share, with that of the original at 1."""
    found = [(p, p.measured.row) for p in curve.points if p.measured and p.measured.row.top1 is not None]
    if not found or curve.original is None or curve.original.top1 is None:
        return None
    dots = [Dot(point.share, row.top1 or 0.0, _told(curve, point), row.top1_error or 0.0) for point, row in found]
    original = Dot(1.0, curve.original.top1, f"original: top-1 {curve.original.top1:.2f} %")
    return _captioned(curve, "Measured top-1", "top-1 %", Series("measured", (*dots, original), line=True), most=100.0)


def _told(curve: Curve, point: Point) -> str:
    row = None if point.measured is None else point.measured.row
    if row is None:
        return str(point.budget)
    return f"{point.budget}: top-1 {row.top1:.2f} %, {change_words(curve.change(point), row.top1_error)} points"


def _captioned(curve: Curve, title: str, unit: str, series: Series, most: float = float("inf")) -> Captioned:
    what = f"share of the original's {LEFT[curve.cost]}"
    told = "; ".join(dot.label for dot in series.dots)
    log = unit.startswith("nats")
    chart = Chart(f"{title} by {what}", what, unit, (series,), told, log_y=log, most=most)
    return chart, f"{title} by {what}{', logarithmic' * log}."


def _agreement(curve: Curve) -> Captioned | None:
    """Measured divergence against the predicted rise."""
    dots = tuple(
        Dot(p.rise, p.measured.divergence, f"{p.budget}: predicted {p.rise:.3g}, measured {p.measured.divergence:.3g}")
        for p in curve.points
        if p.measured and p.rise and p.rise > 0 and p.measured.divergence > 0
    )
    if len(dots) < 2:
        return None
    told, (alike, pairs) = "; ".join(dot.label for dot in dots), curve.agreement()
    title = f"Measured divergence against predicted rise, {LEFT[curve.cost]}"
    labels = ("predicted rise, nats an image", "divergence, nats an image")
    chart = Chart(title, *labels, (Series("measured", dots),), told, log_x=True, log_y=True)
    return chart, f"Measured against predicted; the order is the same in {alike} of {pairs} pairs."
