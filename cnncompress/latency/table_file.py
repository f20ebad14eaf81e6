"""The times of a network's layers and chains in a file: measured on one machine, for plans made on another."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from cnncompress.chains.lowering import paddings
from cnncompress.chains.plan_json import stage_from_json, stage_to_json
from cnncompress.chains.spec import Chain, ConvSpec, Pair, Rank
from cnncompress.chains.stages.convolution import Convolution
from cnncompress.errors import UsageError
from cnncompress.files.reading import Schema, read_given
from cnncompress.files.schemas import Count, Extents, Name, Text
from cnncompress.latency.chains import Job
from cnncompress.latency.curves import Curves, padded_jobs
from cnncompress.latency.setting import TimingSetting
from cnncompress.latency.table import LatencyTable
from cnncompress.latency.wanted import Wanted, job_key

SETTING = ("runtime", "dtype", "device", "batch", "threads", "memory_format")
REMEDY = "measure this network by `cnncompress profile MODEL --latency-table FILE` on the machine that it will run on"
Positive = Annotated[float, Field(gt=0)]


class LayerTimes(Schema):
    """Milliseconds of the chains for one layer at one size, by `job_key`."""

    layer: Convolution
    size: Extents
    times: Annotated[dict[Text, Positive], Field(min_length=1)]


class TableFile(Schema):
    """A file of `--latency-table`."""

    schema_: Literal[1] = Field(alias="schema")
    runtime: Name
    version: Text
    machine: Text
    device: Name
    dtype: Name
    batch: Count
    threads: Count
    memory_format: Literal["", "contiguous", "channels_last"]
    network: Text
    original_ms: Positive
    reference_ms: Positive
    factor: Positive
    layers: Annotated[list[LayerTimes], Field(min_length=1)]


@dataclass(frozen=True)
class Measured:
    """A table with the name of its network, what that takes in the table's setting, and in its fastest format."""

    table: LatencyTable
    network: str
    original_ms: float
    reference_ms: float

    @property
    def words(self) -> str:
        """Where the times are from."""
        return f"{self.table.setting.label} on {self.table.identity['machine']}"


class StoredTable(LatencyTable):
    """Times from a file; what is missing is not measured, but refused."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        where = {key: values[key] for key in (*SETTING, "version", "machine")}
        super().__init__(TimingSetting(**{key: values[key] for key in SETTING}), None, where)
        self.path, self.factor = path, values["factor"]
        for one in values["layers"]:
            spec = stage_from_json(one["layer"])
            assert isinstance(spec, ConvSpec)
            self._store(spec, (one["size"][0], one["size"][1])).add(one["times"])

    def _measure_at(self, spec: ConvSpec, size: Pair, jobs: Sequence[Job]) -> None:
        times = self._store(spec, size).times
        if job_key(Job((spec,))) not in times:
            raise UsageError(f"{self.path} has no times of a layer {spec} at {size[0]}×{size[1]}: {REMEDY}")

    def _curves_of(self, wanted: Wanted) -> Curves:
        stores = [self._store(wanted.call.spec, size) for size in dict.fromkeys(wanted.call.sizes)]

        def known(job: Job) -> bool:
            return all(job_key(job) in store.times for store in stores)

        curves = {
            kind: [job for jobs in ranks if known(jobs[0]) for job in jobs if known(job)]
            for kind, ranks in wanted.anchors.items()
        }
        if not all(curves.values()):
            raise UsageError(f"{self.path} has no times of {wanted.method.name} for {wanted.call.spec}: {REMEDY}")
        return Curves(wanted.call, curves, _probe(wanted, known), lambda job: self._alone(wanted.call, job))


def _probe(wanted: Wanted, known: Callable[[Job], bool]) -> tuple[Rank, Chain] | None:
    """A chain of odd width that was measured, with its structure."""
    chains = ((rank, wanted.chain(rank)) for rank in wanted.ranks)
    odd = (one for one in chains if paddings(one[1]) and all(map(known, padded_jobs(one[1]))))
    rank, chain = next(odd, ((), ()))
    return (wanted.structure(rank), chain) if chain else None


def table_text(measured: Measured) -> str:
    """A table as the text of a file, which `read_table` reads."""
    table = measured.table
    layers = [
        {
            "layer": stage_to_json(spec),
            "size": list(size),
            "times": {key: ms for key, ms in store.times.items() if math.isfinite(ms)},
        }
        for (spec, size), store in table.stores.items()
    ]
    where = {key: table.identity[key] for key in (*SETTING, "version", "machine")}
    times = {"original_ms": measured.original_ms, "reference_ms": measured.reference_ms, "factor": table.factor}
    values = {"schema": 1, **where, "network": measured.network, **times, "layers": layers}
    return json.dumps(values, indent=1) + "\n"


def read_table(path: Path) -> Measured:
    """The table in a file; UsageError in one line for anything else."""
    values = read_given(path, TableFile, "table of times", "`profile --latency-table` writes")
    return Measured(StoredTable(path, values), values["network"], values["original_ms"], values["reference_ms"])
