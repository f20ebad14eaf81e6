"""Schemas of the files of a run and of other JSON files. A stored key that is not listed here is refused."""

# ruff: noqa: RUF012 - pydantic copies defaults
from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

from cnncompress.files.reading import Schema

Text = Annotated[str, Field(max_length=10_000)]
Name = Annotated[str, Field(min_length=1, max_length=1_000)]
Whole = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Channels = Annotated[int, Field(ge=1, le=2**24)]
Extent = Annotated[int, Field(ge=1, le=2**16)]
Pixels = Annotated[int, Field(ge=1, le=2**13)]
Share = Annotated[float, Field(ge=0, le=1)]
Percent = Annotated[float, Field(ge=0, le=100)]
Milliseconds = Annotated[float, Field(ge=0)]
Times = Annotated[list[Milliseconds], Field(min_length=2, max_length=2)]
Costs = Annotated[list[Whole], Field(min_length=2, max_length=2)]
Rank = Annotated[list[Count], Field(min_length=1, max_length=8)]
Extents = Annotated[list[Extent], Field(min_length=2, max_length=2)]
Paddings = Annotated[list[Annotated[int, Field(ge=0, le=2**16)]], Field(min_length=2, max_length=2)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Scalar = StrictBool | StrictInt | StrictFloat | Annotated[StrictStr, Field(max_length=10_000)] | None
Options = dict[Name, Scalar | list[Scalar]]
Numbers = dict[Name, float | None]
Channelwise = Annotated[list[float], Field(min_length=1, max_length=4096)]


# --- metrics.json ---


class Latency(Schema):
    """A `latency.timed.Latency` with its setting."""

    median: Milliseconds
    p10: Milliseconds
    p90: Milliseconds
    batch: Count
    threads: Count
    device: Name
    dtype: Name
    memory_format: Text = "unknown memory format"
    original: Milliseconds | None = None
    runtime: Name = "torch"


class Row(Schema):
    """A `reporting.rows.Row`."""

    name: Text
    kind: Literal["original", "decomposed", "finetuned"]
    params: Whole
    macs: Whole
    size_bytes: Whole
    top1: Percent | None
    top5: Percent | None
    images: Whole | None
    latency_ms: Latency | None
    further_latency_ms: Annotated[list[Latency], Field(max_length=64)] = []
    other_macs: Whole = 0
    top1_error: Annotated[float, Field(ge=0)] | None = None
    data: Text | None = None


class LayerRow(Schema):
    """A `reporting.rows.LayerRow`."""

    layer: Name
    method: Name
    rank: Rank
    params: Costs
    macs: Costs
    error: float | None
    was: Text = ""
    rise: float | None = None


class StepRow(Schema):
    """A `reporting.steps.StepRow`."""

    step: Count
    layers: Annotated[list[Name], Field(min_length=1)]
    what: Text
    before: Percent
    decomposed: Percent
    tuned: Percent
    epochs: Whole
    images: Count


class ClassRow(Schema):
    """A `reporting.classes.ClassRow`."""

    name: Text
    images: Count
    before: Percent
    after: Percent
    error: Annotated[float, Field(ge=0)]


class Confusion(Schema):
    """A `reporting.classes.Confusion`."""

    name: Text
    taken_for: Text
    before: Whole
    after: Whole


class ClassChanges(Schema):
    """A `reporting.classes.ClassChanges`."""

    network: Text
    classes: Count
    lost: Annotated[list[ClassRow], Field(max_length=1000)] = []
    confused: Annotated[list[Confusion], Field(max_length=1000)] = []


class LayerTime(Schema):
    """A `reporting.layer_times.LayerTime`."""

    layer: Name
    shape: Text
    becomes: Text = ""
    after: Milliseconds
    before: Milliseconds | None = None
    planned: Times | None = None


class LayerTimes(Schema):
    """A `reporting.layer_times.LayerTimes`."""

    network: Text
    latency: Latency
    layers: list[LayerTime]


class Metrics(Schema):
    """A run's metrics.json, and what `report --format json` prints."""

    schema_: Literal[1] = Field(alias="schema")
    rows: list[Row]
    layers: list[LayerRow]
    kept: dict[Name, Text] = {}
    notes: list[Text] = []
    steps: list[StepRow] = []
    class_changes: list[ClassChanges] = []
    layer_times: list[LayerTimes] = []


# --- run.json ---


class Source(Schema):
    """A `models.ModelSource`."""

    kind: Literal["torchvision", "timm", "builtin", "factory", "program"]
    name: Name
    kwargs: Options


class Arguments(Schema):
    """The arguments that a library's network can be built with: none loads, downloads or calls anything."""

    num_classes: Annotated[int, Field(ge=0, le=10**6)] | None = None
    in_chans: Annotated[int, Field(ge=1, le=4096)] | None = None
    image_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    img_size: Annotated[int, Field(ge=1, le=4096)] | Annotated[list[Pixels], Field(max_length=2)] | None = None
    patch_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    output_stride: Annotated[int, Field(ge=1, le=64)] | None = None
    groups: Annotated[int, Field(ge=1, le=4096)] | None = None
    width_per_group: Annotated[int, Field(ge=1, le=4096)] | None = None
    width_mult: Annotated[float, Field(gt=0, le=16)] | None = None
    depth: Annotated[int, Field(ge=10, le=1000)] | None = None
    width: Annotated[int, Field(ge=1, le=64)] | None = None
    last_channels: Annotated[int, Field(ge=1, le=4096)] | None = None
    aux_logits: bool | None = None
    transform_input: bool | None = None
    zero_init_residual: bool | None = None
    memory_efficient: bool | None = None
    replace_stride_with_dilation: Annotated[list[bool], Field(max_length=8)] | None = None
    global_pool: Annotated[str, Field(pattern="^[a-z]{0,16}$")] | None = None
    dropout: Share | None = None
    attention_dropout: Share | None = None
    stochastic_depth_prob: Share | None = None
    drop_rate: Share | None = None
    drop_path_rate: Share | None = None


class Preprocessing(Schema):
    """A `spec.Preprocessing`."""

    size: Annotated[list[Pixels], Field(min_length=2, max_length=2)]
    resize: Pixels | None
    mean: Channelwise
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1, max_length=4096)]
    interpolation: Literal["nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos"]


class Data(Schema):
    """The images that a run was measured on."""

    spec: Text
    fingerprint: Text


class Model(Schema):
    """The network that a run was made of, as it was asked for, and the checksum of its tensors."""

    name: Text
    weights: Text
    seed: Whole = 0
    sha256: Digest | None = None


class HeldOut(Schema):
    """A data set of which a part is for evaluation only: the share and the seed by which it was split."""

    fingerprint: Text
    share: Annotated[float, Field(gt=0, lt=1)]
    seed: Whole


class Info(Schema):
    """A run's run.json."""

    format: Count
    source: Source
    preprocessing: Preprocessing | None = None
    versions: dict[Name, Text] = {}
    created: Text = ""
    command: list[Text] = []
    seed: int | None = None
    name: Text = ""
    model: Model | None = None
    data: Data | None = None
    held_out: list[HeldOut] = []
    finetune: Options = {}
    extra: Options = {}  # what else whoever wrote the run wants to say
    sha256: dict[Name, Digest] = {}  # of the files beside it
    code: dict[Name, Digest] = {}  # of the Python file that the network's factory is in


# --- exploration.json ---


class ExploredPoint(Schema):
    """A `reporting.curve.Point`; what was measured of it is in `row` and `divergence`."""

    cost: Literal["macs", "params", "latency"]
    share: Annotated[float, Field(gt=0, le=1)]
    left: Numbers = {}
    rise: float | None = None
    layers: Whole = 0
    refused: Text = ""
    row: Row | None = None
    divergence: Annotated[float, Field(ge=0)] | None = None


class Explored(Schema):
    """What an exploration has found so far, and a key of all that it depends on."""

    schema_: Literal[1] = Field(alias="schema")
    key: Digest
    name: Text
    original: Row | None = None
    points: list[ExploredPoint] = []


# --- small ones ---


class Evaluation(Schema):
    """An `evaluation.Evaluation` beside the best weights of a training; its loss may be infinite."""

    model_config = ConfigDict(allow_inf_nan=True)

    top1: float
    top5: float
    loss: float
    images: Whole


class Tensors(Schema):
    """The metadata of model.safetensors, once its values are read as JSON."""

    aliases: dict[Name, Name] = {}
    strides: dict[Name, Annotated[list[Whole], Field(max_length=16)]] = {}


Counts = dict[Name, Annotated[list[Whole], Field(min_length=2, max_length=3)]]  # images, rows, independent ones
ClassIndex = dict[Name, Whole]  # the class index of each folder
