"""An exploration as a table, CSV or JSON: the curve of budgets, which to choose, and the command for each."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from cnncompress.chains.plan import Budget
from cnncompress.files.reading import finite
from cnncompress.reporting.accuracy import change_words, judged
from cnncompress.reporting.cells import NONE
from cnncompress.reporting.curve import LIMITS, Curve, Point, curves_of
from cnncompress.reporting.layout import fill, fitting, table
from cnncompress.reporting.networks import share_of_time
from cnncompress.reporting.rows import Row
from cnncompress.text import csv_cell, escaped_json, plain

OPTIMISTIC = "the evaluation images chose these budgets, so their accuracies are a little optimistic"
NARROWER = ((), ("params",), ("params", "top-1 %"))  # columns that narrow terminals have no room for
LEFT = {"macs": "MACs", "params": "params", "latency": "time"}


@dataclass(frozen=True)
class Exploration:
    """All points, the original, the command of `decompose` without a budget, and notes."""

    name: str
    points: tuple[Point, ...]
    original: Row | None = None
    command: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def curves(self) -> list[Curve]:
        """One for each cost."""
        return curves_of(self.points, self.original)

    def command_of(self, point: Point) -> str:
        """The command that makes the network of a point, as a shell takes it."""
        where = re.sub(r"[^\w.+-]+", "_", f"{self.name}-{point.cost}-{point.share:g}").lstrip(".-")
        slower = [] if point.cost == "latency" else ["--allow-slower"]
        return shlex.join([*self.command, "--budget", str(point.budget), *slower, "--out", f"runs/{where}"])


@dataclass(frozen=True)
class Pick:
    """A point that stands out, and the sentence that says by what."""

    point: Point | None
    words: str


def picks(curve: Curve) -> list[Pick]:
    """The knee, and the cheapest plans within some points of top-1 where accuracies were measured."""
    found = []
    if (knee := curve.knee()) is not None:
        found.append(Pick(knee, f"Knee of the predicted curve: {_told(curve, knee)}"))
    if all(curve.change(point) is None for point in curve.points):
        return found
    for limit in LIMITS:
        point = curve.cheapest(limit)
        within = f"Within {limit:g} point{'s' * (limit != 1)}"
        if point is None:
            found.append(Pick(None, f"{within}: none of these budgets."))
        else:
            found.append(Pick(point, f"{within}: {_told(curve, point)}"))
    return found


def _told(curve: Curve, point: Point) -> str:
    change, expected = curve.change(point), curve.expected(point)
    if change is not None and point.measured is not None:
        return f"{point.budget}, measured {judged(change, point.measured.row.top1_error)}."
    if expected is not None:
        return f"{point.budget}, estimated {change_words(expected, None)} points from its measured neighbours."
    return f"{point.budget}, not measured."


def marks(curve: Curve) -> dict[Budget, str]:
    """A word beside each budget that stands out: `knee`, `≤0.5`."""
    found: dict[Budget, list[str]] = {}
    if (knee := curve.knee()) is not None:
        found.setdefault(knee.budget, []).append("knee")
    if any(curve.change(point) is not None for point in curve.points):
        for limit in LIMITS:  # the smallest loss that a point stands for
            point = curve.cheapest(limit)
            if point is not None and not any(word.startswith("≤") for word in found.get(point.budget, [])):
                found.setdefault(point.budget, []).append(f"≤{limit:g}")
    return {budget: " ".join(words) for budget, words in found.items()}


def render_exploration(found: Exploration, format: str = "table", width: int | None = None) -> str:
    """The exploration as text; lines of tables have at most `width` characters, but for commands."""
    if format == "json":
        return escaped_json(json.dumps(finite(_values(found)), indent=2, ensure_ascii=False, allow_nan=False))
    if format == "csv":
        return _csv(records(found))
    if format == "html":
        from cnncompress.reporting.exploration_page import exploration_page

        return exploration_page(found)
    parts: list[str] = []
    for curve in found.curves:
        layouts = [partial(table, *curve_table(curve, hidden), format) for hidden in NARROWER]
        parts.append(fitting(layouts, width))
        parts.append("\n".join(fill(pick.words, width) for pick in picks(curve)))
    parts.append("\n".join(fill(plain(note), width) for note in notes_of(found)))
    parts.append("\n\n".join(f"{fill(f'{words}:', width)}\n{command}" for words, command in commands(found)))
    return "\n\n".join(filter(None, parts))


def notes_of(found: Exploration) -> list[str]:
    """What is to be known of the curves: what was measured, how well it was predicted, what the choice is worth."""
    said: list[str] = []
    for curve in found.curves:
        where = f", budgets of {LEFT[curve.cost]}" if len(found.curves) > 1 else ""
        told = sum(point.measured is not None for point in curve.points)
        if told:
            said.append(f"{told} of {len(curve.points)} networks were made and measured{where}.")
        alike, pairs = curve.agreement()
        if pairs:
            said.append(f"Predicted and measured divergence have the same order in {alike} of {pairs} pairs{where}.")
    if any(point.measured and point.measured.row.top1 is not None for point in found.points):
        images = next(p.measured.row.images for p in found.points if p.measured)
        said.append(f"Changes of top-1 are in points ± their standard error, on the same {images or 0:,} images.")
        said.append(OPTIMISTIC[0].upper() + OPTIMISTIC[1:] + ".")
    refused = [point for point in found.points if point.refused]
    return [*said, *found.notes, *(point.refused for point in refused[:1])]


def commands(found: Exploration) -> list[tuple[str, str]]:
    """The budget of each point that stands out with what it is, and its command; one for each point."""
    told: dict[Budget, list[str]] = {}
    for pick in (pick for curve in found.curves for pick in picks(curve)):
        if pick.point is not None:
            words = pick.words.partition(":")[0]
            told.setdefault(pick.point.budget, []).append(words[0].lower() + words[1:])
    by_budget = {point.budget: point for point in found.points}
    return [(f"{budget}, {', '.join(words)}", found.command_of(by_budget[budget])) for budget, words in told.items()]


def curve_table(curve: Curve, without: Sequence[str] = ()) -> tuple[list[str], list[list[str]], str]:
    """A line for each point, the cheapest first; predicted rises and divergences are nats an image.

    Columns that say nothing are left out, and those `without`, by their headers.
    """
    told, points = marks(curve), curve.points
    headers = ["budget", "MACs", "params", "time", "predicted", "diverges", "top-1 %", "change", ""]
    cells = []
    for point in points:
        row = None if point.measured is None else point.measured.row
        cells.append(
            [
                str(point.budget),
                *(_share(point.left.get(cost)) for cost in ("macs", "params")),
                _share(_time(curve, point)),
                NONE if point.rise is None else f"{point.rise:.3g}",
                NONE if point.measured is None else f"{point.measured.divergence:.3g}",
                NONE if row is None or row.top1 is None else f"{row.top1:.2f}",
                change_words(curve.change(point), None if row is None else row.top1_error),
                told.get(point.budget, "no plan" if point.refused else ""),
            ]
        )
    hidden = {i for i in (3, 5, 6, 7) if all(line[i] == NONE for line in cells)}
    shown = [i for i, header in enumerate(headers) if i not in hidden and header not in without]
    aligned = "".join("lrrrrrrrl"[i] for i in shown)
    return [headers[i] for i in shown], [[line[i] for i in shown] for line in cells], aligned


def _share(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"


def _time(curve: Curve, point: Point) -> float | None:
    """The share of the original's time, measured where it was, else as it is planned."""
    row = None if point.measured is None else point.measured.row
    measured = None if row is None or curve.original is None else share_of_time(row.latency, curve.original)
    return point.left.get("latency") if measured is None else measured


def records(found: Exploration) -> list[dict[str, Any]]:
    """One record a point, with full numbers."""
    result = []
    for curve in found.curves:
        told = marks(curve)
        for point in curve.points:
            row = None if point.measured is None else point.measured.row
            record: dict[str, Any] = {"budget": str(point.budget), "cost": point.cost, "share": point.share}
            record |= {f"{cost}_left": point.left.get(cost) for cost in ("macs", "params", "latency")}
            record |= {"predicted_rise": point.rise, "layers": point.layers}
            record |= {"divergence": point.measured and point.measured.divergence}
            record |= {key: row and getattr(row, key) for key in ("macs", "params", "top1", "top5", "images")}
            record |= {"top1_change": curve.change(point), "top1_error": row and row.top1_error}
            record |= {"expected_change": curve.expected(point)}
            record |= {"latency_median_ms": row and row.latency and row.latency.median}
            record |= {"latency_ratio": None if row is None else _time(curve, point)}
            record |= {"marks": told.get(point.budget, ""), "refused": point.refused}
            result.append(record | {"command": found.command_of(point)})
    return result


def _values(found: Exploration) -> dict[str, Any]:
    return {"schema": 1, "name": found.name, "points": records(found), "notes": notes_of(found)}


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: csv_cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue().rstrip("\n")
