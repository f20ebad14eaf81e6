"""The schema of plan files. Nothing here needs torch."""

# ruff: noqa: RUF012 - pydantic copies defaults
from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, model_validator

from cnncompress.chains.stages import STAGES
from cnncompress.chains.stages.convolution import Convolution
from cnncompress.files.reading import Schema
from cnncompress.files.schemas import Channels, Costs, Count, Name, Numbers, Options, Rank, Text, Times


def _stage(values: Any) -> Any:
    """A stage's JSON by the schema of its type."""
    kind = values.get("kind") if isinstance(values, dict) else None
    if kind not in STAGES:
        raise ValueError(f"unknown stage kind {kind!r}; there are {', '.join(STAGES)}")
    return STAGES[kind].schema.model_validate(values, strict=True)


Stages = Annotated[list[Annotated[Any, PlainValidator(_stage)]], Field(min_length=1, max_length=64)]


class PlanEntry(Schema):
    """One layer of a plan that a person may have written: what follows from method and rank may be left out."""

    method: Name
    rank: Count | Rank
    options: Options = {}
    layer: Convolution | None = None
    macs: Costs = [0, 0]
    stages: Stages | None = None
    lowering: Text = ""

    @model_validator(mode="after")
    def _connected(self) -> PlanEntry:
        if self.layer is None or self.stages is None:
            return self
        widths = [(stage.in_channels, stage.out_channels) for stage in self.stages]
        inner = all(out == into for (_, out), (into, _) in pairwise(widths))
        if not inner or (widths[0][0], widths[-1][1]) != (self.layer.in_channels, self.layer.out_channels):
            raise ValueError("the channels of its stages do not follow on each other")
        return self


class NarrowedEntry(Schema):
    """One layer of a plan that has fewer channels `now`."""

    layer: Convolution
    now: Convolution
    macs: Costs = [0, 0]

    @model_validator(mode="after")
    def _narrower(self) -> NarrowedEntry:
        for name in ("kind", "kernel_size", "stride", "padding", "dilation", "padding_mode"):
            if getattr(self.layer, name) != getattr(self.now, name):
                raise ValueError(f"its {name} is another one now")
        widths = ("in_channels", "out_channels", "groups")
        if any(getattr(self.layer, name) < getattr(self.now, name) for name in widths):
            raise ValueError("it has more channels now")
        return self


class StoredEntry(PlanEntry):
    """One layer of a run's plan.json."""

    rank: Rank
    layer: Convolution
    stages: Stages


class PlanFile(Schema):
    """A file for `--plan`."""

    metric: Name = "frobenius"
    memory_format: Literal["", "contiguous", "channels_last"] = ""
    layers: dict[Name, PlanEntry]
    narrowed: dict[Name, NarrowedEntry] = {}
    channels: dict[Name, Channels] = {}
    kept: dict[Name, Text] = {}
    achieved: Numbers = {}
    rises: Numbers = {}
    times: dict[Name, Times] = {}
    errors: Numbers = {}


class StoredPlan(PlanFile):
    """A run's plan.json."""

    metric: Name
    layers: dict[Name, StoredEntry]  # type: ignore[assignment]
    kept: dict[Name, Text]
