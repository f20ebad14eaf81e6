"""The table of networks: costs, accuracy, and milliseconds in each runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from cnncompress.latency.setting import TimingSetting
from cnncompress.latency.timed import Latency
from cnncompress.reporting.accuracy import change_words, is_noise
from cnncompress.reporting.cells import NONE, divide, with_share
from cnncompress.reporting.layout import fitting, table
from cnncompress.reporting.rows import Report, Row, milliseconds_beside
from cnncompress.reporting.times import EAGER, Beside, legend, not_faster
from cnncompress.terminal.words import human
from cnncompress.text import plain

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


def references(rows: Sequence[Row]) -> list[Row | None]:
    """The original that each row is compared with: the last one at or above it."""
    originals: list[Row | None] = []
    original = None
    for row in rows:
        original = row if row.kind == "original" else original
        originals.append(original)
    return originals


def ratios_of(row: Row, original: Row | None) -> dict[str, float | None]:
    """Shares of the original's costs; that of the latency is of the original that was timed in turns with it."""
    if original is None:
        return dict.fromkeys(("params", "macs", "size", "latency"))
    return {
        "params": divide(row.params, original.params),
        "macs": divide(row.macs, original.macs),
        "size": divide(row.size_bytes, original.size_bytes),
        "latency": share_of_time(row.latency, original),
    }


def share_of_time(latency: Latency | None, original: Row | None) -> float | None:
    """What a network takes of the time of the original that was timed in turns with it, in the same runtime."""
    before = milliseconds_beside(latency, original) if latency and original else None
    return divide(latency.median, before) if latency and before else None


def network_records(report: Report) -> list[dict[str, Any]]:
    """One record a network, or one for each runtime that it was timed in."""
    return [
        _network_record(row, original, timing)
        for row, original in zip(report.rows, references(report.rows), strict=True)
        for timing in row.latencies or (None,)
    ]


def _network_record(row: Row, original: Row | None, timing: Latency | None) -> dict[str, Any]:
    values, ratios = vars(row), ratios_of(row, original)
    record = {key: values[key] for key in ("name", "kind", "params", "macs")}
    record |= {"flops": 2 * row.macs} | {key: values[key] for key in ("size_bytes", "top1", "top5", "images")}
    for key in ("median", "p10", "p90"):
        record[f"latency_{key}_ms"] = timing and getattr(timing, key)
    for key in ("runtime", "batch", "threads", "device", "dtype", "memory_format"):
        record[key] = timing and getattr(timing.setting, key)
    record |= {"params_ratio": ratios["params"], "macs_ratio": ratios["macs"], "flops_ratio": ratios["macs"]}
    return record | {"size_ratio": ratios["size"], "latency_ratio": share_of_time(timing, original)}


def network_table(rows: Sequence[Row], form: NetworkForm | None = None) -> tuple[list[str], list[list[str]], str]:
    """Headers, cells, and the alignment of the columns: one of latency where all times are of one runtime."""
    form = form or NetworkForm()
    headers = ["network", "kind", "params", "MACs", "FLOPs", "size", "top-1 %", "top-5 %", "images"]
    timed = len(runtimes_of(rows)) == 1
    headers += [form.latency] * timed
    cells = []
    for row, original in zip(rows, references(rows), strict=True):
        ratios = ratios_of(row, original)
        costs = [(human(row.params), "params"), (human(row.macs), "macs"), (human(2 * row.macs), "macs")]
        costs += [(human(row.size_bytes, "B"), "size")]
        cell = [plain(row.name), row.kind, *(with_share(text, ratios[key], form.between) for text, key in costs)]
        cell += [_percent(row.top1), _percent(row.top5), NONE if row.images is None else f"{row.images:,}"]
        cells.append(cell + [_milliseconds(row.latency, ratios["latency"], form)] * timed)
    hidden = {*form.hidden}
    if form.between != " " and all(row.top1 is None for row in rows):
        hidden |= {"top-1 %", "top-5 %", "images"}
    shown = [i for i, header in enumerate(headers) if header not in hidden]
    aligned = "".join("llr"[min(i, 2)] for i in shown)
    return [headers[i] for i in shown], [[c[i] for i in shown] for c in cells], aligned


def runtimes_of(rows: Sequence[Row]) -> list[str]:
    """The runtimes, with their precisions, that any row has times of."""
    return list(dict.fromkeys(latency.setting.label for row in rows for latency in row.latencies))


def in_several(rows: Sequence[Row]) -> dict[str, list[Beside]]:
    """The times of each network that was timed, beside its original's; none where all are of one runtime.

    An original is there only where no other network was timed beside it.
    """
    if len(runtimes_of(rows)) < 2:
        return {}
    pairs = list(zip(rows, references(rows), strict=True))
    timed = [[_beside(latency, original, row) for latency in row.latencies] for row, original in pairs]
    compared = [pair[1] for pair, by in zip(pairs, timed, strict=True) if any(one.before is not None for one in by)]
    return {
        row.name: by
        for row, by in zip(rows, timed, strict=True)
        if by and not any(row is original for original in compared)
    }


def _beside(latency: Latency, original: Row | None, row: Row) -> Beside:
    if original is None or original is row:
        return Beside(latency)
    before = milliseconds_beside(latency, original)
    same = [one for one in original.latencies if one.setting.label == latency.setting.label and one.median == before]
    return Beside(latency, before, next(iter(same), None))


def fitting_networks(rows: Sequence[Row], width: int | None) -> str:
    """The table of the networks, in the first form that `width` has room for."""

    def draw(form: NetworkForm) -> str:
        columns = network_table(rows, form)
        text = table(*columns, widths=[26] + [None] * (len(columns[0]) - 1), limit=width)
        counts = {row.images for row in rows if row.images is not None}
        told = "images" in form.hidden and len(counts) == 1
        return f"{text}\n\nAccuracy on {counts.pop():,} images." if told else text

    return fitting([partial(draw, form) for form in NETWORK_FORMS], width)


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def _milliseconds(latency: Latency | None, ratio: float | None, form: NetworkForm) -> str:
    if latency is None:
        return NONE
    low, mid, high = (f"{v:.3g}" if v < 100 else f"{v:.0f}" for v in (latency.p10, latency.median, latency.p90))
    return with_share(f"{mid} [{low}–{high}]" if form.percentiles else mid, ratio, form.between)


def notes_of(report: Report) -> list[str]:
    """What is to be known of the table: units, how was timed, what the changes of accuracy are worth, the rest."""
    rows = report.rows
    notes = [LEGEND, *_ways_of_timing(rows)]
    for row, original in zip(rows, references(rows), strict=True):
        if original is not None and row is not original:
            notes += _not_faster(row, original)
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


def _ways_of_timing(rows: Sequence[Row]) -> list[str]:
    names: dict[TimingSetting, list[str]] = {}
    for row in rows:
        for latency in row.latencies:
            names.setdefault(_conditions(latency.setting, len(runtimes_of(rows)) > 1), []).append(row.name)
    told = []
    for setting, timed in names.items():
        who = f" of {', '.join(dict.fromkeys(timed))}" if len(names) > 1 else ""
        what = f"median and percentiles of a forward pass of a batch of {setting.batch}"
        told.append(f"Latency{who}{_where(setting)}: {what} on {setting.words}.")
    if timings := in_several(rows):
        told.append(legend(timings))
    return told


def _conditions(setting: TimingSetting, several: bool) -> TimingSetting:
    """What a note says of a time; the table says more where there are several runtimes."""
    return replace(setting, runtime=EAGER, dtype="", memory_format="") if several else setting


def _not_faster(row: Row, original: Row) -> list[str]:
    shares = [(latency.setting.label, share_of_time(latency, original)) for latency in row.latencies]
    return not_faster(row.name, [(label, share) for label, share in shares if share is not None])


def _where(setting: TimingSetting) -> str:
    return "" if setting.label == EAGER else f" in {setting.label}"


def _change_of_top1(row: Row, original: Row) -> str:
    change = (row.top1 or 0.0) - (original.top1 or 0.0)
    noise = ", within noise" * is_noise(change, row.top1_error)
    told = f"{change_words(change, row.top1_error)} points of the original's"
    return f"{row.name}: top-1 {told} (standard error, the same {row.images:,} images){noise}."
