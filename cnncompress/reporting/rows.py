"""The values of a report: a row for each network and each decomposed layer, and the reasons of the kept layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cnncompress.chains.plan import Plan
from cnncompress.chains.spec import Pair, Rank
from cnncompress.errors import CompressError
from cnncompress.files.reading import MalformedError, check
from cnncompress.files.schemas import Metrics
from cnncompress.latency.setting import TimingSetting
from cnncompress.latency.timed import Latency
from cnncompress.names.methods import SELECT
from cnncompress.network.costs import Profile
from cnncompress.reporting.classes import ClassChanges
from cnncompress.reporting.examples import Example
from cnncompress.reporting.layer_times import LayerTimes
from cnncompress.reporting.steps import StepRow
from cnncompress.reporting.times_json import latency_from_json, latency_to_json, pick, read_keys
from cnncompress.text import plain_values

SCHEMA = 1
Kind = Literal["original", "decomposed", "finetuned"]
ROW_KEYS = ("name", "kind", "params", "macs", "size_bytes", "top1", "top5", "images")
LAYER_KEYS = ("layer", "method", "rank", "params", "macs", "error")
# What reports of earlier versions lack, with the value that stands for it.
LATER_ROW: dict[str, Any] = {"other_macs": 0, "data": None, "top1_error": None}
LATER_LAYER: dict[str, Any] = {"was": "", "rise": None}


@dataclass(frozen=True)
class Row:
    """One network: costs of one image, accuracy in percent on `images` images, milliseconds.

    `other_macs` of `macs` are outside convolution and linear layers. `data` identifies the images the accuracy was
    measured on. `top1_error` is the standard error, in points, of the difference of `top1` to the original's, both on
    the same images. `latency` is that in the first runtime asked for, `further` those in the others.
    """

    name: str
    kind: Kind
    params: int
    macs: int
    size_bytes: int
    top1: float | None = None
    top5: float | None = None
    images: int | None = None
    latency: Latency | None = None
    other_macs: int = 0
    data: str | None = None
    top1_error: float | None = None
    further: tuple[Latency, ...] = ()

    @property
    def latencies(self) -> tuple[Latency, ...]:
        """The latencies in all runtimes, the first one first."""
        return (() if self.latency is None else (self.latency,)) + self.further

    def timed(self, latencies: Sequence[Latency]) -> Row:
        """The row with latencies in the place of its own, the first runtime's first."""
        return dataclasses.replace(self, latency=next(iter(latencies), None), further=tuple(latencies[1:]))

    @classmethod
    def of(cls, name: str, kind: Kind, profile: Profile, **measured: Any) -> Row:
        """The row of a profiled network; `measured` are the fields from `top1` on."""
        costs = (profile.params, profile.total_macs, profile.size_bytes)
        return cls(name, kind, *costs, other_macs=profile.other_macs, **measured)


@dataclass(frozen=True)
class LayerRow:
    """One decomposed layer: (before, after) costs and the relative error in the metric, None where there is none.

    `was` describes the original layer and `rise` is the plan's prediction of what it costs in accuracy.
    """

    layer: str
    method: str
    rank: Rank
    params: Pair
    macs: Pair
    error: float | None
    was: str = ""
    rise: float | None = None


@dataclass(repr=False)
class Report:
    """Rows of networks, each after the original it is compared with, the decomposed and the kept layers, notes.

    `steps` are those of a cascade, of a network that was fine-tuned so. `changes` tell what the newest networks answer
    otherwise than their originals, class by class, and `examples` are images of it, which are shown and not stored.
    `layer_times` has where their time goes, as far as that was measured.
    """

    rows: list[Row] = field(default_factory=list)
    layers: list[LayerRow] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    steps: list[StepRow] = field(default_factory=list)
    changes: list[ClassChanges] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    layer_times: list[LayerTimes] = field(default_factory=list)

    def __repr__(self) -> str:
        names = ", ".join(row.name for row in self.rows)
        return f"<Report: {names or 'no networks'}; {len(self.layers)} layers decomposed, {len(self.kept)} kept>"

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON-ready values after the schema: what a run stores, and what `from_json` reads back."""
        return {
            "schema": SCHEMA,
            "rows": [row_to_json(row) for row in self.rows],
            "layers": [pick(layer, (*LAYER_KEYS, *LATER_LAYER)) for layer in self.layers],
            "kept": dict(self.kept),
            "notes": list(self.notes),
            **({"steps": [step.to_json() for step in self.steps]} if self.steps else {}),
            **({"class_changes": [one.to_json() for one in self.changes]} if self.changes else {}),
            **({"layer_times": [one.to_json() for one in self.layer_times]} if self.layer_times else {}),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Report:
        """Read what `to_json` gave, also in earlier versions; CompressError for another schema or other values."""
        if not isinstance(values, Mapping) or values.get("schema") != SCHEMA:
            schema = values.get("schema") if isinstance(values, Mapping) else None
            raise CompressError(
                f"this report has schema {schema}, not {SCHEMA}; read it with the version that wrote it"
            )
        try:
            check(Metrics, values := plain_values(values))
        except MalformedError as error:
            raise CompressError(f"this is not a report of schema {SCHEMA}: it {error}; write it again") from error
        rows, layers = map(row_from_json, values["rows"]), map(_layer_from_json, values["layers"])
        steps = list(map(StepRow.from_json, values.get("steps", [])))
        changes = list(map(ClassChanges.from_json, values.get("class_changes", [])))
        notes, times = list(values.get("notes", [])), list(map(LayerTimes.from_json, values.get("layer_times", [])))
        kept = dict(values.get("kept", {}))
        return cls(list(rows), list(layers), kept, notes, steps, changes, layer_times=times)


def row_to_json(row: Row) -> dict[str, Any]:
    """A row as JSON-ready values."""
    values = pick(row, (*ROW_KEYS, *LATER_ROW))
    values["latency_ms"] = None if row.latency is None else latency_to_json(row.latency)
    return values | ({"further_latency_ms": list(map(latency_to_json, row.further))} if row.further else {})


def row_from_json(values: Mapping[str, Any]) -> Row:
    """The row of checked values."""
    latencies = [*filter(None, [values["latency_ms"]]), *values.get("further_latency_ms", [])]
    return Row(**read_keys(values, ROW_KEYS, LATER_ROW)).timed([latency_from_json(latency) for latency in latencies])


def _layer_from_json(values: Mapping[str, Any]) -> LayerRow:
    picked = read_keys(values, LAYER_KEYS, LATER_LAYER)
    return LayerRow(**picked | {key: tuple(values[key]) for key in ("rank", "params", "macs")})


def layer_rows(plan: Plan, errors: Mapping[str, float]) -> list[LayerRow]:
    """The rows of the layers that a plan changes with their relative errors, each compared with what it was at first.

    The rank of a layer that has fewer channels alone is what it takes and gives.
    """
    rows = []
    for name, change in plan.changes.items():
        first = plan.narrowed.get(name, change)
        chain = [plan.layers[name].method] if name in plan.layers else []
        method = "+".join([SELECT] * (name in plan.narrowed) + chain)
        params, macs = (first.params[0], change.params[1]), (first.macs[0], change.macs[1])
        told = errors.get(name), str(first.spec), plan.rises.get(name)
        rows.append(LayerRow(name, method, change.rank, params, macs, *told))
    return rows


def milliseconds_beside(now: Latency, original: Row) -> float | None:
    """What the original of a network took beside it; None where it was not timed, or under other conditions."""
    if now.original is not None:
        return now.original
    alike = [then for then in original.latencies if _conditions(then.setting) == _conditions(now.setting)]
    alike.sort(key=lambda then: then.setting.dtype != now.setting.dtype)
    return alike[0].median if alike else None


def _conditions(setting: TimingSetting) -> tuple[Any, ...]:
    """What two times that may be compared have in common."""
    return setting.runtime, setting.batch, setting.threads, setting.device


def merge(reports: Mapping[str, Report]) -> Report:
    """One report of several runs by name: each original once, the run before the names of layers, and before notes.

    Originals are the same where nothing differs but what one of them was not measured for, and their latency: each row
    keeps the milliseconds of the original that ran beside it.
    """
    if len(reports) == 1:
        return next(iter(reports.values()))
    result, told = Report(), dict[str, list[str]]()
    for run, report in reports.items():
        result.layers += [dataclasses.replace(layer, layer=f"{run}:{layer.layer}") for layer in report.layers]
        result.steps += [dataclasses.replace(step, what=f"{run}: {step.what}") for step in report.steps]
        result.changes += [dataclasses.replace(one, network=f"{run}: {one.network}") for one in report.changes]
        result.examples += [dataclasses.replace(one, network=f"{run}: {one.network}") for one in report.examples]
        result.layer_times += [dataclasses.replace(one, network=f"{run}: {one.network}") for one in report.layer_times]
        result.kept |= {f"{run}:{name}": reason for name, reason in report.kept.items()}
        for note in report.notes:
            told.setdefault(note, []).append(run)
    result.notes = [f"{', '.join(runs)}: {note}" for note, runs in told.items()]
    taken: set[str] = set()
    for run, row in (item for group in _grouped(reports) for item in group):
        result.rows.append(dataclasses.replace(row, name=f"{run}:{row.name}") if row.name in taken else row)
        taken.add(row.name)
    return result


Group = list[tuple[str, Row]]  # an original, unless none is known, and the rows that are compared with it, by run


def _grouped(reports: Mapping[str, Report]) -> list[Group]:
    """The rows of all reports by original, identical ones once; first those that are compared with none."""
    groups: list[Group] = []
    for run, report in reports.items():
        group: Group = []
        original: Row | None = None
        for row in report.rows:
            if row.kind == "original":
                original, group = row, _group_of(row, groups, run)
                continue
            if not group:
                groups.insert(0, group)
            timed = _beside(row, original)
            if all(timed != known for _, known in group):
                group.append((run, timed))
    return groups


def _group_of(original: Row, groups: list[Group], run: str) -> Group:
    """The group of an original; a new one where it is not known yet."""
    for group in groups:
        known = _together(group[0][1], original)
        if known is not None:
            group[0] = group[0][0], known
            return group
    groups.append([(run, original)])
    return groups[-1]


def _together(one: Row, other: Row) -> Row | None:
    """Two rows of one network as one row, or None where they are not."""
    measured = ("top1", "top5", "images", "data")
    values = {key: (getattr(one, key), getattr(other, key)) for key in measured}
    blank: dict[str, Any] = dict.fromkeys((*measured, "latency")) | {"further": ()}
    same = dataclasses.replace(one, **blank) == dataclasses.replace(other, **blank)
    if not same or any(a is not None and b is not None and a != b for a, b in values.values()):
        return None
    merged: dict[str, Any] = {key: b if a is None else a for key, (a, b) in values.items()}
    return dataclasses.replace(one, **merged).timed(one.latencies or other.latencies)


def _beside(row: Row, original: Row | None) -> Row:
    """A row whose latency tells what its own original took."""
    if original is None:
        return row
    return row.timed([dataclasses.replace(x, original=milliseconds_beside(x, original)) for x in row.latencies])
