"""A report as terminal table, Markdown, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from cnncompress.errors import UsageError, nearest
from cnncompress.files.reading import finite
from cnncompress.latency.timed import Latency
from cnncompress.reporting.layout import fill, fitting, table
from cnncompress.reporting.rows import Report, Row, original_milliseconds
from cnncompress.terminal.words import human
from cnncompress.text import csv_cell, escaped_json, markdown, plain

FORMATS = ("table", "markdown", "csv", "json")
NONE = "–"
LISTED = 4  # names of kept layers in a table, for each reason
NUMBER = re.compile(r"(?<![\w.])\d[\d,×.]*\b")
LEGEND = "MACs of one image; FLOPs = 2 × MACs; MB = 10⁶ bytes; 0.50× is half of the original above."


@dataclass(frozen=True)
class NetworkForm:
    """How wide the table of networks is drawn: what stands before a ratio, percentiles, and columns left out."""

    between: str = " "
    percentiles: bool = True
    hidden: tuple[str, ...] = ()

    @property
    def latency(self) -> str:
        """The header of the latency."""
        return "latency ms [p10–p90]" if self.percentiles else "ms"


NETWORK_FORMS = (
    NetworkForm(),
    NetworkForm("\n"),
    NetworkForm("\n", False),
    NetworkForm("\n", False, ("images",)),
    NetworkForm("\n", False, ("images", "kind")),
    NetworkForm("\n", False, ("images", "kind", "top-5 %")),
)
LAYER_FORMS = ("whole", "after", "shares", "fewest")


def render(report: Report, format: str = "table", layers: bool = False, width: int | None = None) -> str:
    """The report as text, without a final newline.

    Tables and Markdown round; CSV and JSON have the full numbers. `layers` adds the decomposed and the kept layers;
    as CSV is one table, it then has these instead of the networks. JSON always has all, after its schema. Tables keep
    to `width` characters a line, if need be by fewer columns; Markdown, CSV and JSON have all columns.
    Raises UsageError for an unknown format.
    """
    if format == "json":
        return escaped_json(json.dumps(finite(report.to_json()), indent=2, ensure_ascii=False, allow_nan=False))
    if format == "csv":
        return _csv(_layer_records(report) if layers else _network_records(report))
    if format not in FORMATS:
        raise UsageError(f"unknown format '{format}' (known: {', '.join(FORMATS)}){nearest(format, FORMATS)}")
    narrow = width if format == "table" else None
    notes = _notes(report)
    if format == "markdown":
        parts = [table(*_network_table(report.rows), format), "\n".join(f"- {markdown(note)}" for note in notes)]
    else:
        parts = [_fitting_networks(report.rows, narrow), "\n".join(fill(plain(note), narrow) for note in notes)]
    if layers and report.layers:
        layouts = [_layer_table(report)] if narrow is None else [_layer_table(report, form) for form in LAYER_FORMS]
        parts += [fitting([partial(table, *columns, format) for columns in layouts], narrow)]
    if layers and report.kept:
        parts += [table(*_kept_table(report.kept), format, [40, None, 60], narrow)]
    return "\n\n".join(parts)


# --- the networks ---


def _references(rows: Sequence[Row]) -> list[Row | None]:
    """The original that each row is compared with: the last one at or above it."""
    found: list[Row | None] = []
    original = None
    for row in rows:
        original = row if row.kind == "original" else original
        found.append(original)
    return found


def _conditions(latency: Latency) -> tuple[Any, ...]:
    return (latency.batch, latency.threads, latency.device, latency.dtype, latency.memory_format)


def _ratios(row: Row, original: Row | None) -> dict[str, float | None]:
    """Shares of the original's costs; that of the latency is of the original that was timed in turns with it."""
    if original is None:
        return dict.fromkeys(("params", "macs", "size", "latency"))
    before = original_milliseconds(row, original)
    return {
        "params": _divide(row.params, original.params),
        "macs": _divide(row.macs, original.macs),
        "size": _divide(row.size_bytes, original.size_bytes),
        "latency": _divide(row.latency.median, before) if row.latency and before else None,
    }


def _divide(after: float, before: float) -> float | None:
    return after / before if before else None


def _network_records(report: Report) -> list[dict[str, Any]]:
    records = []
    for row, original in zip(report.rows, _references(report.rows), strict=True):
        values, ratios, timing = vars(row), _ratios(row, original), row.latency
        record = {key: values[key] for key in ("name", "kind", "params", "macs")}
        record |= {"flops": 2 * row.macs} | {key: values[key] for key in ("size_bytes", "top1", "top5", "images")}
        for key in ("median", "p10", "p90"):
            record[f"latency_{key}_ms"] = timing and getattr(timing, key)
        for key in ("batch", "threads", "device", "dtype", "memory_format"):
            record[key] = timing and getattr(timing, key)
        record |= {"params_ratio": ratios["params"], "macs_ratio": ratios["macs"], "flops_ratio": ratios["macs"]}
        records.append(record | {"size_ratio": ratios["size"], "latency_ratio": ratios["latency"]})
    return records


def _network_table(rows: Sequence[Row], form: NetworkForm | None = None) -> tuple[list[str], list[list[str]], str]:
    """Headers, cells, and the alignment of the columns."""
    form = form or NetworkForm()
    headers = ["network", "kind", "params", "MACs", "FLOPs", "size", "top-1 %", "top-5 %", "images", form.latency]
    cells = []
    for row, original in zip(rows, _references(rows), strict=True):
        ratios = _ratios(row, original)
        costs = [(human(row.params), "params"), (human(row.macs), "macs"), (human(2 * row.macs), "macs")]
        costs += [(human(row.size_bytes, "B"), "size")]
        cell = [plain(row.name), row.kind, *(_with(text, ratios[key], form.between) for text, key in costs)]
        cell += [_percent(row.top1), _percent(row.top5), NONE if row.images is None else f"{row.images:,}"]
        cells.append([*cell, _milliseconds(row.latency, ratios["latency"], form)])
    hidden = {*form.hidden} | (set() if any(row.latency for row in rows) else {form.latency})
    if form.between != " " and all(row.top1 is None for row in rows):
        hidden |= {"top-1 %", "top-5 %", "images"}
    shown = [i for i, header in enumerate(headers) if header not in hidden]
    return [headers[i] for i in shown], [[c[i] for i in shown] for c in cells], "".join("llrrrrrrrr"[i] for i in shown)


def _fitting_networks(rows: Sequence[Row], width: int | None) -> str:
    """The table of the networks, in the first form that `width` has room for."""

    def draw(form: NetworkForm) -> str:
        columns = _network_table(rows, form)
        text = table(*columns, widths=[26] + [None] * (len(columns[0]) - 1), limit=width)
        counts = {row.images for row in rows if row.images is not None}
        told = "images" in form.hidden and len(counts) == 1
        return f"{text}\n\nAccuracy on {counts.pop():,} images." if told else text

    return fitting([partial(draw, form) for form in NETWORK_FORMS], width)


def _share(ratio: float) -> str:
    return f"{ratio:.2f}×" if ratio >= 0.1 else f"{ratio:.2g}×"


def _with(text: str, ratio: float | None, between: str = " ") -> str:
    return text if ratio is None else f"{text}{between}{_share(ratio)}"


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def _milliseconds(latency: Latency | None, ratio: float | None, form: NetworkForm) -> str:
    if latency is None:
        return NONE
    low, mid, high = (f"{v:.3g}" if v < 100 else f"{v:.0f}" for v in (latency.p10, latency.median, latency.p90))
    return _with(f"{mid} [{low}–{high}]" if form.percentiles else mid, ratio, form.between)


def _notes(report: Report) -> list[str]:
    rows = report.rows
    notes = [LEGEND]
    timings: dict[tuple[Any, ...], list[str]] = {}
    for row in rows:
        if row.latency:
            timings.setdefault(_conditions(row.latency), []).append(row.name)
    for (batch, threads, device, dtype, layout), names in timings.items():
        who = f" of {', '.join(names)}" if len(timings) > 1 else ""
        where = f"{device}, {threads} thread{'s' * (threads != 1)}, {dtype}, {layout}"
        notes.append(f"Latency{who}: median and percentiles of a forward pass of a batch of {batch} on {where}.")
    for row, original in zip(rows, _references(rows), strict=True):
        ratio = _ratios(row, original)["latency"] if row is not original else None
        if ratio is not None and ratio >= 1:
            notes.append(f"{row.name} is not faster than the original: {ratio:.2f} of its latency.")
        if row.top1_error is not None and original and None not in (row.top1, original.top1):
            notes.append(_change_of_top1(row, original))
    evaluated = [row for row in rows if row.top1 is not None]
    if len({row.images for row in evaluated}) > 1 or len({row.data for row in evaluated if row.data}) > 1:
        notes.append("The accuracies are not comparable: the networks were evaluated on different images.")
    notes += [
        f"{human(row.other_macs)} of {row.name}'s {human(row.macs)} MACs are outside convolution and linear layers."
        for row in rows
        if row.other_macs
    ]
    return notes + report.notes


def _change_of_top1(row: Row, original: Row) -> str:
    change = (row.top1 or 0.0) - (original.top1 or 0.0)
    images = f"the same {row.images:,} images"
    return (
        f"{row.name}: top-1 {change:+.2f} ± {row.top1_error:.2f} points of the original's (standard error, {images})."
    )


# --- the layers ---


def _layer_records(report: Report) -> list[dict[str, Any]]:
    """One record a layer, decomposed or kept."""
    records: list[dict[str, Any]] = []
    for layer in report.layers:
        values: dict[str, Any] = {"layer": layer.layer, "was": layer.was or None, "method": layer.method}
        values["rank"] = "×".join(map(str, layer.rank))
        for key, (before, after) in (("params", layer.params), ("macs", layer.macs)):
            values |= {f"{key}_before": before, f"{key}_after": after, f"{key}_ratio": _divide(after, before)}
        records.append(values | {"error": layer.error, "kept": None})
    columns = ("was", "method", "rank", "params_before", "params_after", "params_ratio")
    empty = dict.fromkeys((*columns, "macs_before", "macs_after", "macs_ratio", "error"))
    return records + [{"layer": name} | empty | {"kept": reason} for name, reason in report.kept.items()]


def _layer_table(report: Report, form: str = "whole") -> tuple[list[str], list[list[str]], str]:
    """The decomposed layers: with costs before and after, with those after, or with shares alone, in fewer columns."""
    headers = ["decomposed layer", "was", "method", "rank", "params", "MACs", "relative error", "predicted rise"]
    if form != "whole":
        headers[0], headers[-2:] = "layer", ["error", "rise"]
    cells = []
    for layer in report.layers:
        costs = [_cost(*pair, form) for pair in (layer.params, layer.macs)]
        error = NONE if layer.error is None or not math.isfinite(layer.error) else f"{layer.error:.4f}"
        rise = NONE if layer.rise is None else f"{layer.rise:.5f}"
        rank = "×".join(map(str, layer.rank))
        cells.append([plain(layer.layer), layer.was or NONE, layer.method, rank, *costs, error, rise])
    hidden = {"was"} if form in ("shares", "fewest") else set()
    if form == "fewest" or all(layer.rise is None for layer in report.layers):
        hidden.add(headers[-1])
    shown = [i for i, header in enumerate(headers) if header not in hidden]
    return [headers[i] for i in shown], [[c[i] for i in shown] for c in cells], "".join("lllrrrrr"[i] for i in shown)


def _cost(before: int, after: int, form: str) -> str:
    ratio = _divide(after, before)
    if form in ("shares", "fewest") and ratio is not None:
        return _share(ratio)
    return _with(f"{human(before)} → {human(after)}" if form == "whole" else human(after), ratio)


def _kept_table(kept: dict[str, str]) -> tuple[list[str], list[list[str]], str]:
    """Layers kept for the same reason in one line."""
    groups: dict[str, dict[str, str]] = {}
    for name, reason in kept.items():
        groups.setdefault(NUMBER.sub("…", reason), {})[name] = reason
    cells = []
    for members in groups.values():
        names = list(members)
        more = f", … {len(names) - LISTED} more" if len(names) > LISTED else ""
        cells.append([", ".join(names[:LISTED]) + more, str(len(names)), _common(list(members.values()))])
    return ["kept layers", "number", "because"], cells, "lrl"


def _common(reasons: Sequence[str]) -> str:
    """Reasons that are alike but for their numbers, as one: `…` for a number that is not the same in all."""
    columns = zip(*map(NUMBER.findall, reasons), strict=True)
    shown = iter([column[0] if len(set(column)) == 1 else "…" for column in columns])
    return NUMBER.sub(lambda _: next(shown), reasons[0])


# --- the formats ---


def _csv(records: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    if records:
        writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: csv_cell(value) for key, value in record.items()} for record in records)
    return text.getvalue().rstrip("\n")
