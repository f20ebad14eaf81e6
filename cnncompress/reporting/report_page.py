"""The page of a report: what networks cost and lost, layer by layer, with pictures."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence

from cnncompress.reporting.accuracy import change_words, judged
from cnncompress.reporting.cells import NONE, divide, share
from cnncompress.reporting.classes import class_section
from cnncompress.reporting.evidence import Evidence
from cnncompress.reporting.examples import examples_section
from cnncompress.reporting.filters import filters_section
from cnncompress.reporting.layer_times import time_section
from cnncompress.reporting.layers import kept_table
from cnncompress.reporting.networks import (
    NetworkForm,
    network_table,
    notes_of,
    ratios_of,
    references,
    runtimes_of,
    share_of_time,
)
from cnncompress.reporting.page import Cell, Drawn, Page, Section, Table, Tile, drawn, with_bars
from cnncompress.reporting.peers import Peer
from cnncompress.reporting.pictures import Pictures
from cnncompress.reporting.rows import LayerRow, Report, Row
from cnncompress.reporting.spectra import spectra_section
from cnncompress.reporting.steps import step_table
from cnncompress.reporting.summary import summaries
from cnncompress.reporting.svg import Chart, Dot, Series
from cnncompress.reporting.warnings import warnings_of
from cnncompress.terminal.words import human

TITLES = 3  # runs that a title names


def report_page(
    report: Report,
    evidence: Sequence[Evidence] = (),
    pictures: Mapping[str, Pictures] | None = None,
    peers: Sequence[Peer] = (),
) -> str:
    """One report of all runs as a page of HTML; `evidence` has what each run holds beside it.

    `pictures` are those of the weights of runs, by their paths, and `peers` stand in the charts beside the networks.
    """
    warnings = warnings_of(report)
    notes = [note for note in notes_of(report) if note not in warnings]
    shown = dict(pictures or {})
    notes += [f"{path}: {one.missing}" for path, one in shown.items() if one.missing]
    sections = [
        _networks(report, peers),
        *_trained(evidence),
        *_compared(evidence),
        *_times(report, evidence),
        *map(class_section, report.changes),
        *examples_section(report.examples),
        *_layers(report, evidence),
        *_shown(shown),
        Section("Notes", sentences=notes),
        *_made(evidence),
    ]
    page = Page(_title(report), [f"{s}." for s in summaries(report)], _tiles(report), _lead(report), warnings, sections)
    return page.html()


def _title(report: Report) -> str:
    names = [row.name for row in report.rows if row.kind != "original"] or [row.name for row in report.rows]
    more = f" and {len(names) - TITLES} more" if len(names) > TITLES else ""
    return f"{', '.join(names[:TITLES])}{more}"


def _pairs(report: Report) -> list[tuple[Row, Row]]:
    rows = zip(report.rows, references(report.rows), strict=True)
    return [(row, original) for row, original in rows if original is not None and row is not original]


def _tiles(report: Report) -> list[Tile]:
    """The shares of the last network, where one is reported on."""
    pairs = _pairs(report)
    if not pairs or len({id(original) for _, original in pairs}) > 1 or len(report.rows) > 3:
        return []
    row, original = pairs[-1]
    ratios = ratios_of(row, original)
    costs = {"MACs": ("macs", ""), "Parameters": ("params", ""), "Size": ("size", "B")}
    values = {"macs": (original.macs, row.macs), "params": (original.params, row.params)}
    values["size"] = (original.size_bytes, row.size_bytes)
    tiles = []
    for name, (key, unit) in costs.items():
        before, after = (human(value, unit) for value in values[key])
        tiles.append(Tile(name, share(ratios[key] or 0.0), f"{before} → {after}"))
    for latency in row.latencies:
        ratio = share_of_time(latency, original)
        if ratio is not None:
            detail = f"{latency.median / ratio:.3g} → {latency.median:.3g} ms, {latency.setting.words}"
            tiles.append(Tile(f"Time, {latency.setting.label}", share(ratio), detail))
    if row.top1 is not None and original.top1 is not None:
        change = change_words(row.top1 - original.top1, row.top1_error)
        tiles.append(Tile("Top-1, points", change, f"{original.top1:.2f} → {row.top1:.2f} %"))
    return tiles


def _lead(report: Report) -> str:
    """What accuracies were measured on."""
    images = sorted({row.images for row in report.rows if row.images})
    if not images:
        return ""
    told = ", ".join(f"{count:,}" for count in images)
    return f"Accuracies are of {told} images that neither calibrated nor trained anything; ± is one standard error."


def _networks(report: Report, peers: Sequence[Peer]) -> Section:
    headers, cells, aligned = network_table(report.rows, NetworkForm("\n"))
    caption = "All networks; 0.50× is half of the original above."
    table = Table(caption, headers, cells, ["l" if a == "l" else "" for a in aligned])
    return Section("Networks", charts=_charts(report, peers), tables=[table, *_steps(report)])


def _steps(report: Report) -> list[Table]:
    """The steps of a cascade, where there was one."""
    headers, cells, aligned = step_table(report.steps)
    caption = "The steps of the cascade, with the accuracy of each on the images that chose its epoch"
    return [Table(caption, headers, cells, ["l" if a == "l" else "" for a in aligned])] if cells else []


def _charts(report: Report, peers: Sequence[Peer]) -> list[Drawn]:
    """Accuracy against MACs and against the time in each runtime, for each original and what was made of it."""
    groups: dict[int, list[Row]] = {}
    for row, original in zip(report.rows, references(report.rows), strict=True):
        if row.top1 is not None:
            groups.setdefault(id(original), []).append(row)
    return [drawing for rows in groups.values() if len(rows) > 1 for drawing in _charts_of(rows, peers)]


def _charts_of(rows: Sequence[Row], peers: Sequence[Peer]) -> list[Drawn]:
    """Peers stand beside the time in the first runtime."""
    beside = [(peer, peer.macs_beside(rows[0].macs)) for peer in peers]
    found = [_accuracy_against("MACs", [(row, float(row.macs)) for row in rows], beside)]
    beside = [(peer, peer.ms) for peer in peers if peer.ms is not None]
    for label in runtimes_of(rows):
        timed = [(row, one.median) for row in rows for one in row.latencies if one.setting.label == label]
        if len(timed) > 1:
            found.append(_accuracy_against(f"ms in {label}", timed, beside))
            beside = []
    return found


def _accuracy_against(what: str, values: Sequence[tuple[Row, float]], peers: Sequence[tuple[Peer, float]]) -> Drawn:
    dots = [(row.name, value, row.top1 or 0.0, row.top1_error or 0.0) for row, value in values]
    dots += [(peer.name, value, peer.top1, 0.0) for peer, value in peers]
    series = []
    for name, value, top1, error in dots:
        amount = f"{human(int(value))} {what}" if what == "MACs" else f"{value:.3g} {what}"
        series.append(Series(name, (Dot(value, top1, f"{name}: {amount}, top-1 {top1:.2f} %", error),)))
    told = "; ".join(s.dots[0].label for s in series)
    chart = Chart(f"Top-1 against {what}, {series[0].name}", what, "top-1 %", tuple(series), told, most=100.0)
    return drawn(chart, f"Top-1 against {what}; bars are a standard error of the change from the original.")


def _trained(evidence: Sequence[Evidence]) -> list[Section]:
    """Curves of fine-tuning, where there are epochs."""
    charts = []
    for key, name in (("val_top1", "top-1 %"), ("train_loss", "training loss, nats")):
        series = []
        for one in evidence:
            dots = [(epoch.epoch, getattr(epoch, key)) for epoch in one.history]
            known = [(x, y) for x, y in dots if y is not None and math.isfinite(y)]
            if len(known) > 1:
                points = tuple(Dot(float(x), y, f"{one.path}, epoch {x}: {y:.4g}") for x, y in known)
                series.append(Series(one.path, points, line=True))
        if series:
            told = "; ".join(f"{s.name} from {s.dots[0].y:.4g} to {s.dots[-1].y:.4g}" for s in series)
            most = 100.0 if key == "val_top1" else math.inf
            chart = Chart(f"Fine-tuning: {name} by epoch", "epoch", name, tuple(series), told, most=most)
            charts.append(drawn(chart, f"{name} by epoch; epoch 0 is the network before training.", numbered=False))
    return [Section("Fine-tuning", charts=charts)] if charts else []


def _compared(evidence: Sequence[Evidence]) -> list[Section]:
    """What was predicted beside what was measured."""
    cells = []
    for one in evidence:
        row = next((row for row in one.report.rows if row.kind == "decomposed"), None)
        original = next((row for row in one.report.rows if row.kind == "original"), None)
        if row is None or original is None:
            continue
        rise, achieved = one.predicted_rise, one.plan.get("achieved", {})
        change = None if row.top1 is None or original.top1 is None else row.top1 - original.top1
        if rise is not None and change is not None:
            told = judged(change, row.top1_error)
            cells.append([one.path, "loss of accuracy", f"{rise:.3g} nats before correction", told])
        measured = {"macs": divide(row.macs, original.macs), "params": divide(row.params, original.params)}
        measured["latency"] = share_of_time(row.latency, original)
        for cost, value in achieved.items():
            if value is not None and (known := measured.get(cost)) is not None:
                cells.append([one.path, f"share of {cost}", f"{value:.3f}", f"{known:.3f}"])
    if not cells:
        return []
    table = Table(
        "What the plan predicted, and what was measured", ["run", "of", "predicted", "measured"], cells, "llll"
    )
    return [Section("Predicted and measured", tables=[table])]


def _times(report: Report, evidence: Sequence[Evidence]) -> list[Section]:
    """Where the time goes, or how to measure it."""
    command = shlex.join(["cnncompress", "report", *(one.path for one in evidence), "--latency", "--format", "html"])
    return [time_section(report.layer_times, command)] if evidence or report.layer_times else []


def _layers(report: Report, evidence: Sequence[Evidence]) -> list[Section]:
    """The layers of each run, before and after."""
    each = [(one.path if len(evidence) > 1 else "", one.report) for one in evidence] or [("", report)]
    tables = [table for name, one in each for table in _layer_tables(name, one)]
    return [Section("Layers", text=BARS, tables=tables)] if tables else []


BARS = "The upper bar is the layer before, the lower one what it became, both as shares of the longest in the column."


def _layer_tables(name: str, report: Report) -> list[Table]:
    tables = []
    of_run = f", {name}" if name else ""
    if report.layers:
        rows = sorted(report.layers, key=lambda layer: layer.macs[0] - layer.macs[1], reverse=True)
        headers = ["layer", "MACs", "params"]
        rises = any(layer.rise is not None for layer in rows)
        headers += ["predicted rise"] * rises + ["method", "rank", "was", "relative error"]
        words = ["", "", "", *[""] * rises, "l", "l", "l", ""]
        caption = f"Layers that changed, those that save most MACs first{of_run}"
        cells = [_layer_cells(layer, rows, rises) for layer in rows]
        tables.append(Table(caption, headers, cells, words, name))
    if report.kept:
        headers, kept, _ = kept_table(report.kept)
        title = "" if tables else name
        tables.append(
            Table(f"Layers that stay as they were, by reason{of_run}", headers, kept, ["l", "", "words"], title)
        )
    return tables


def _layer_cells(layer: LayerRow, rows: Sequence[LayerRow], rises: bool) -> list[Cell]:
    cells: list[Cell] = [layer.layer]
    for key in ("macs", "params"):
        before, after = getattr(layer, key)
        ratio = divide(after, before)
        text = f"{human(before)} → {human(after)}" + ("" if ratio is None else f" {share(ratio)}")
        cells.append(with_bars(text, (before, after), max(max(getattr(one, key)) for one in rows)))
    if rises:
        known = [abs(one.rise) for one in rows if one.rise is not None and math.isfinite(one.rise)]
        rise = layer.rise
        cells.append(NONE if rise is None else with_bars(f"{rise:.3g}", (abs(rise),), max(known, default=0.0)))
    error = NONE if layer.error is None or not math.isfinite(layer.error) else f"{layer.error:.4f}"
    return [*cells, layer.method, "×".join(map(str, layer.rank)), layer.was or NONE, error]


def _shown(pictures: Mapping[str, Pictures]) -> list[Section]:
    """The spectra and the filters of each run."""
    named = [(path if len(pictures) > 1 else "", one) for path, one in pictures.items()]
    return [section for name, one in named for section in (*spectra_section(one, name), *filters_section(one, name))]


def _made(evidence: Sequence[Evidence]) -> list[Section]:
    """Versions, and the commands that make the runs again."""
    cells, commands = [], []
    for one in evidence:
        info = one.info
        versions = ", ".join(f"{name} {version}" for name, version in info.get("versions", {}).items())
        data = (info.get("data") or {}).get("spec") or NONE
        cells.append([one.path, info.get("created") or NONE, versions or NONE, data, str(info.get("seed"))])
        commands += [(f"{one.path}{', trained' if i else ''}", line) for i, line in enumerate(one.commands)]
    if not cells:
        return []
    headers = ["run", "made", "versions", "images", "seed"]
    table = Table("When the runs were made, with what and on which images", headers, cells, ["", "l", "words", "l", ""])
    return [Section("How it was made", tables=[table], commands=commands)]
