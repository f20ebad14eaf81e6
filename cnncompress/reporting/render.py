"""A report as terminal table, Markdown, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from tabulate import tabulate

from cnncompress.errors import UsageError, nearest
from cnncompress.reading import finite
from cnncompress.reporting.rows import Report, Row, original_milliseconds
from cnncompress.spec import Latency
from cnncompress.text import csv_cell, escaped_json, plain
from cnncompress.words import human

FORMATS = ("table", "markdown", "csv", "json")
NONE = "–"
LISTED = 4  # names of kept layers in a table, for each reason
NUMBER = re.compile(r"(?<![\w.])\d[\d,×.]*\b")
LEGEND = "MACs of one image; FLOPs = 2 × MACs; MB = 10⁶ bytes; 0.50× is half of the original above."


def render(report: Report, format: str = "table", layers: bool = False) -> str:
    """The report as text, without a final newline.

    Tables and Markdown round; CSV and JSON have the full numbers. `layers` adds the decomposed and the kept layers;
    as CSV is one table, it then has these instead of the networks. JSON always has all, after its schema.
    Raises UsageError for an unknown format.
    """
    if format == "json":
        return escaped_json(json.dumps(finite(report.to_json()), indent=2, ensure_ascii=False, allow_nan=False))
    if format == "csv":
        return _csv(_layer_records(report) if layers else _network_records(report))
    if format not in FORMATS:
        raise UsageError(f"unknown format '{format}' (known: {', '.join(FORMATS)}){nearest(format, FORMATS)}")
    bullet = "- " if format == "markdown" else ""
    networks = _network_table(report.rows)
    parts = [
        table(*networks, format, [26] + [None] * (len(networks[0]) - 1)),
        "\n".join(bullet + plain(note) for note in _notes(report)),
    ]
    if layers and report.layers:
        parts += [table(*_layer_table(report), format)]
    if layers and report.kept:
        parts += [table(*_kept_table(report.kept), format, [40, None, 60])]
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


def _network_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]], str]:
    """Headers, cells, and the alignment of the columns."""
    headers = ["network", "kind", "params", "MACs", "FLOPs", "size", "top-1 %", "top-5 %", "images"]
    timed = any(row.latency for row in rows)
    cells = []
    for row, original in zip(rows, _references(rows), strict=True):
        ratios = _ratios(row, original)
        cell = [row.name, row.kind, _with(human(row.params), ratios["params"])]
        cell += [_with(human(row.macs), ratios["macs"]), _with(human(2 * row.macs), ratios["macs"])]
        cell += [_with(human(row.size_bytes, "B"), ratios["size"]), _percent(row.top1), _percent(row.top5)]
        cell += [NONE if row.images is None else f"{row.images:,}"]
        cells.append(cell + ([_milliseconds(row.latency, ratios["latency"])] if timed else []))
    return headers + ["latency ms [p10–p90]"] * timed, cells, "ll" + "r" * (7 + timed)


def _share(ratio: float) -> str:
    return f"{ratio:.2f}×" if ratio >= 0.1 else f"{ratio:.2g}×"


def _with(text: str, ratio: float | None) -> str:
    return text if ratio is None else f"{text} {_share(ratio)}"


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def _milliseconds(latency: Latency | None, ratio: float | None) -> str:
    if latency is None:
        return NONE
    low, mid, high = (f"{v:.3g}" if v < 100 else f"{v:.0f}" for v in (latency.p10, latency.median, latency.p90))
    return _with(f"{mid} [{low}–{high}]", ratio)


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
    evaluated = [row for row in rows if row.top1 is not None]
    if len({row.images for row in evaluated}) > 1 or len({row.data for row in evaluated if row.data}) > 1:
        notes.append("The accuracies are not comparable: the networks were evaluated on different images.")
    notes += [
        f"{human(row.other_macs)} of {row.name}'s {human(row.macs)} MACs are outside convolution and linear layers."
        for row in rows
        if row.other_macs
    ]
    return notes + report.notes


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


def _layer_table(report: Report) -> tuple[list[str], list[list[str]], str]:
    headers = ["decomposed layer", "was", "method", "rank", "params", "MACs", "relative error"]
    cells = []
    for layer in report.layers:
        costs = [
            _with(f"{human(before)} → {human(after)}", _divide(after, before))
            for before, after in (layer.params, layer.macs)
        ]
        rank = "×".join(map(str, layer.rank))
        error = NONE if layer.error is None or not math.isfinite(layer.error) else f"{layer.error:.4f}"
        cells.append([layer.layer, layer.was or NONE, layer.method, rank, *costs, error])
    if any(layer.rise is not None for layer in report.layers):
        headers.append("predicted rise")
        cells = [[*c, NONE if x.rise is None else f"{x.rise:.5f}"] for c, x in zip(cells, report.layers, strict=True)]
    return headers, cells, "lllrrrrr"[: len(headers)]


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


def table(
    headers: Sequence[str],
    rows: Iterable[Sequence[str]],
    alignment: str,
    format: str,
    widths: Sequence[int | None] | None = None,
) -> str:
    """A table for the terminal or in Markdown; `alignment` has an l or an r a column, `widths` (terminal) wraps."""
    widths = widths or [None] * len(headers)
    rows = [[plain(cell) for cell in row] for row in rows]
    if format == "markdown":
        cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    else:
        cells = [[fill(cell, width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    align = [{"l": "left", "r": "right"}[a] for a in alignment]
    style = "pipe" if format == "markdown" else "simple"
    return tabulate(cells, headers, style, colalign=align if cells else None, disable_numparse=True)


def fill(text: str, width: int | None) -> str:
    """`text` in lines of at most `width` columns where its words allow; None leaves it as it is."""
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False) if width else text
