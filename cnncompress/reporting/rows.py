"""What a report says: one row a network, one row a decomposed layer, and the reasons of the kept layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cnncompress.chains.plan import Plan
from cnncompress.chains.spec import Pair, Rank
from cnncompress.errors import CompressError
from cnncompress.files.reading import MalformedError, check
from cnncompress.files.schemas import Metrics
from cnncompress.latency.timed import Latency
from cnncompress.network.costs import Profile
from cnncompress.text import plain_values

SCHEMA = 1
Kind = Literal["original", "decomposed", "finetuned"]
LATENCY_KEYS = ("median", "p10", "p90", "batch", "threads", "device", "dtype")
ROW_KEYS = ("name", "kind", "params", "macs", "size_bytes", "top1", "top5", "images")
LAYER_KEYS = ("layer", "method", "rank", "params", "macs", "error")
# What reports of earlier versions lack, with the value that stands for it.
LATER_LATENCY: dict[str, Any] = {"memory_format": "unknown memory format", "original": None}
LATER_ROW: dict[str, Any] = {"other_macs": 0, "data": None, "top1_error": None}
LATER_LAYER: dict[str, Any] = {"was": "", "rise": None}


@dataclass(frozen=True)
class Row:
    """One network: costs of one image, accuracy in percent on `images` images, milliseconds.

    `other_macs` of `macs` are outside convolution and linear layers. `data` identifies the images the accuracy was
    measured on. `top1_error` is the standard error, in points, of the difference of `top1` to the original's, both on
    the same images.
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
    """Rows of networks, each after the original it is compared with, the decomposed and the kept layers, notes."""

    rows: list[Row] = field(default_factory=list)
    layers: list[LayerRow] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        names = ", ".join(row.name for row in self.rows)
        return f"<Report: {names or 'no networks'}; {len(self.layers)} layers decomposed, {len(self.kept)} kept>"

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON-ready values after the schema: what a run stores, and what `from_json` reads back."""
        return {
            "schema": SCHEMA,
            "rows": [
                _pick(row, (*ROW_KEYS, *LATER_ROW)) | {"latency_ms": _latency_to_json(row.latency)} for row in self.rows
            ],
            "layers": [_pick(layer, (*LAYER_KEYS, *LATER_LAYER)) for layer in self.layers],
            "kept": dict(self.kept),
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Report:
        """Read what `to_json` gave, also in earlier versions; CompressError for another schema or other values."""
        if not isinstance(values, Mapping) or values.get("schema") != SCHEMA:
            found = values.get("schema") if isinstance(values, Mapping) else None
            raise CompressError(f"this report has schema {found}, not {SCHEMA}; read it with the version that wrote it")
        try:
            check(Metrics, values := plain_values(values))
        except MalformedError as error:
            raise CompressError(f"this is not a report of schema {SCHEMA}: it {error}; write it again") from error
        rows, layers = map(_row_from_json, values["rows"]), map(_layer_from_json, values["layers"])
        return cls(list(rows), list(layers), dict(values.get("kept", {})), list(values.get("notes", [])))


def _pick(value: Any, keys: Iterable[str]) -> dict[str, Any]:
    picked = {key: getattr(value, key) for key in keys}
    return {key: list(v) if isinstance(v, tuple) else v for key, v in picked.items()}


def _latency_to_json(latency: Latency | None) -> dict[str, Any] | None:
    return None if latency is None else _pick(latency, (*LATENCY_KEYS, *LATER_LATENCY))


def _row_from_json(values: Mapping[str, Any]) -> Row:
    latency = values["latency_ms"]
    if latency is not None:
        latency = Latency(**_read(latency, LATENCY_KEYS, LATER_LATENCY))
    return Row(**_read(values, ROW_KEYS, LATER_ROW), latency=latency)


def _layer_from_json(values: Mapping[str, Any]) -> LayerRow:
    picked = _read(values, LAYER_KEYS, LATER_LAYER)
    return LayerRow(**picked | {key: tuple(values[key]) for key in ("rank", "params", "macs")})


def _read(values: Mapping[str, Any], keys: Iterable[str], later: Mapping[str, Any]) -> dict[str, Any]:
    return {key: values[key] for key in keys} | {key: values.get(key, default) for key, default in later.items()}


def layer_rows(plan: Plan, errors: Mapping[str, float]) -> list[LayerRow]:
    """The rows of a plan's layers with their relative errors."""
    return [
        LayerRow(name, p.method, p.rank, p.params, p.macs, errors.get(name), str(p.spec), plan.rises.get(name))
        for name, p in plan.layers.items()
    ]


def original_milliseconds(row: Row, original: Row) -> float | None:
    """What the original took beside a row's network; None where it was not timed, or under other conditions."""
    now, then = row.latency, original.latency
    if now is None or then is None or now.original is not None:
        return now.original if now else None
    return then.median if (now.batch, now.threads, now.device) == (then.batch, then.threads, then.device) else None


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
    blank: dict[str, Any] = dict.fromkeys((*measured, "latency"))
    same = dataclasses.replace(one, **blank) == dataclasses.replace(other, **blank)
    if not same or any(a is not None and b is not None and a != b for a, b in values.values()):
        return None
    found: dict[str, Any] = {key: b if a is None else a for key, (a, b) in values.items()}
    return dataclasses.replace(one, **found, latency=one.latency or other.latency)


def _beside(row: Row, original: Row | None) -> Row:
    """A row whose latency tells what its own original took."""
    if row.latency is None or original is None:
        return row
    timed = dataclasses.replace(row.latency, original=original_milliseconds(row, original))
    return dataclasses.replace(row, latency=timed)
