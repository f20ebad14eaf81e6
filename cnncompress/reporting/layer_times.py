"""Where the time of a network goes, layer by layer, beside its original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cnncompress.latency.timed import Latency
from cnncompress.reporting.cells import NONE, divide, share
from cnncompress.reporting.page import Cell, Section, Table, with_bars
from cnncompress.reporting.times_json import latency_from_json, latency_to_json, pick, read_keys

NOISE_SHARE = 0.03  # share by which two times of the same layer may differ
NOT_MEASURED = "The times of layers were not measured, or not in a runtime that shows them."


@dataclass(frozen=True)
class LayerTime:
    """Milliseconds of a layer in a forward pass, and for a run those of the original's layer of the same name.

    `becomes` is empty where the layer is as it was. `planned` are the milliseconds before and after that a plan within
    a budget of latency counted on.
    """

    layer: str
    shape: str
    becomes: str
    after: float
    before: float | None = None
    planned: tuple[float, float] | None = None

    @property
    def slower(self) -> bool:
        """True where a chain takes longer than the layer it replaced, by more than the noise."""
        return bool(self.becomes) and self.before is not None and self.after > (1 + NOISE_SHARE) * self.before

    @property
    def slower_in_words(self) -> str:
        """That it is slower than what it replaced, in a sentence."""
        return f"{self.layer} is slower than the layer it replaced: {self.after:.3f} ms for {self.before:.3f}"


@dataclass(frozen=True)
class LayerTimes:
    """The times of the layers of `network` in the order of calls, and `latency`, what all of it takes."""

    network: str
    latency: Latency
    layers: tuple[LayerTime, ...]

    def rest(self) -> tuple[float | None, float]:
        """The milliseconds outside layers, of the original where they are known and of the network."""
        before, now = self.latency.original, sum(one.after for one in self.layers)
        was = None if before is None else max(0.0, before - sum(one.before or 0.0 for one in self.layers))
        return was, max(0.0, self.latency.median - now)

    def to_json(self) -> dict[str, Any]:
        """The values as a report has them."""
        keys = ("layer", "shape", "becomes", "after", "before", "planned")
        layers = [pick(layer, keys) for layer in self.layers]
        return {"network": self.network, "latency": latency_to_json(self.latency), "layers": layers}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LayerTimes:
        """Of checked values."""
        return cls(values["network"], latency_from_json(values["latency"]), tuple(map(_layer, values["layers"])))


def _layer(values: Mapping[str, Any]) -> LayerTime:
    known = read_keys(values, ("layer", "shape", "after"), {"becomes": "", "before": None, "planned": None})
    return LayerTime(**known | {"planned": known["planned"] and tuple(known["planned"])})


def time_section(times: Sequence[LayerTimes], command: str) -> Section:
    """Where the time goes; where that is not known, which `command` tells."""
    if not times:
        return Section("Where the time goes", text=NOT_MEASURED, commands=[("To measure them", command)])
    text = "The upper bar is of the layer in the original, the lower one of what it became; the slowest come first."
    told = [f"{layer.slower_in_words}." for one in times for layer in one.layers if layer.slower]
    return Section("Where the time goes", text=text, tables=[_table(one) for one in times], sentences=told)


def _table(times: LayerTimes) -> Table:
    rows = sorted(times.layers, key=lambda one: max(one.after, one.before or 0.0), reverse=True)
    planned = any(one.planned for one in rows)
    most = max((max(one.after, one.before or 0.0) for one in rows), default=0.0)
    headers = ["layer", "ms", "share of all", *["planned ms"] * planned, "was", "is"]
    cells: list[list[Cell]] = []
    for one in rows:
        words = [_pair(*one.planned) if one.planned else NONE] * planned
        cells.append([one.layer, _bars(one.before, one.after, most), _share(one.after, times), *words, one.shape])
        cells[-1].append(one.becomes or "the same")
    was, rest = times.rest()
    cells.append(["all else", _bars(was, rest, max(most, rest)), _share(rest, times), *[NONE] * planned, "", ""])
    setting = times.latency.setting
    caption = f"{times.network}: a batch of {setting.batch} in {setting.label}, {setting.words}"
    return Table(caption, headers, cells, ["", "", "", *[""] * planned, "l", "l"])


def _bars(before: float | None, after: float, most: float) -> Cell:
    values = (after,) if before is None else (before, after)
    return with_bars(f"{after:.3f}" if before is None else _pair(before, after), values, most)


def _pair(before: float, after: float) -> str:
    ratio = divide(after, before)
    return f"{before:.3f} → {after:.3f}" + ("" if ratio is None else f" {share(ratio)}")


def _share(part: float, times: LayerTimes) -> str:
    whole = divide(part, times.latency.median)
    return NONE if whole is None else f"{100 * whole:.1f} %"
