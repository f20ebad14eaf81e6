"""The nouns: layers, chains of stages, plans, profiles. Plain values without torch modules."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from cnncompress.errors import UsageError
from cnncompress.words import layer_plan_in_words, plan_in_words

if TYPE_CHECKING:
    from torch import Tensor

Pair = tuple[int, int]
Rank = tuple[int, ...]


@dataclass(frozen=True)
class ConvSpec:
    """Geometry of a `Conv2d` or, with `linear=True`, of a `Linear` (a 1×1 kernel on its last axis).

    The weight is `W[F, C/g, kh, kw]` with F = `out_channels`, C = `in_channels`, g = `groups`; a Linear's weight is
    seen as `W[F, C, 1, 1]`. `padding` is a pair, or `"same"` (an even kernel then pads one more on the right).
    """

    in_channels: int
    out_channels: int
    kernel_size: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair | Literal["same"] = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    bias: bool = False
    padding_mode: str = "zeros"
    linear: bool = False

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """`(F, C/g, kh, kw)`."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    @property
    def weights(self) -> int:
        """Number of weights, without the bias; also the MACs of one output position."""
        F, C, kh, kw = self.weight_shape
        return F * C * kh * kw

    @property
    def params(self) -> int:
        """Number of weights and biases."""
        return self.weights + (self.out_channels if self.bias else 0)

    @property
    def pointwise(self) -> bool:
        """True for a 1×1 convolution and for a Linear."""
        return self.kernel_size == (1, 1)

    @property
    def depthwise(self) -> bool:
        """True where every group has one input channel."""
        return self.groups > 1 and self.groups == self.in_channels

    def group(self) -> ConvSpec:
        """The spec of one group of a grouped convolution."""
        g = self.groups
        return self.replace(in_channels=self.in_channels // g, out_channels=self.out_channels // g, groups=1)

    def replace(self, **changes: Any) -> ConvSpec:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def output_size(self, size: Pair) -> Pair:
        """Height and width of the output for an input of height and width `size`."""
        if self.linear:
            return size
        if self.padding == "same":
            return size
        out = []
        for n, k, s, p, d in zip(size, self.kernel_size, self.stride, self.padding, self.dilation, strict=True):
            out.append((n + 2 * p - d * (k - 1) - 1) // s + 1)
        return out[0], out[1]

    def __str__(self) -> str:
        if self.linear:
            return f"Linear {self.in_channels}→{self.out_channels}"
        kh, kw = self.kernel_size
        groups = f" in {self.groups} groups" if self.groups > 1 else ""
        return f"{kh}×{kw} {self.in_channels}→{self.out_channels}{groups}"


@dataclass(frozen=True)
class Permutation:
    """A fixed reordering of channels: output channel i is input channel `index[i]`.

    The index itself is data, as kernels are: an int64 tensor [channels] in the stage's place among the kernels.
    """

    channels: int
    linear: bool = False

    def __str__(self) -> str:
        return f"permute {self.channels}"


Stage = ConvSpec | Permutation
Chain = tuple[Stage, ...]


def convolutions(chain: Chain) -> Iterator[ConvSpec]:
    """The stages of a chain that have weights, in order."""
    return (stage for stage in chain if isinstance(stage, ConvSpec))


def chain_params(chain: Chain) -> int:
    """Weights and biases of a chain."""
    return sum(stage.params for stage in convolutions(chain))


def chain_macs(chain: Chain, size: Pair) -> int:
    """Multiply-accumulates of a chain for an input of height and width `size`.

    For a Linear, `size` is the leading positions it is applied to, as `(positions, 1)`.
    Biases are not counted, as in `torch.utils.flop_counter`.
    """
    total = 0
    for stage in convolutions(chain):
        size = stage.output_size(size)
        total += stage.weights * size[0] * size[1]
    return total


@dataclass(frozen=True)
class Call:
    """How a network uses a layer on one image: position in the order of first calls, calls, input sizes.

    `kept` says why no chain can stand in its place, "" where one can as far as is known.
    """

    order: int
    spec: ConvSpec
    sizes: tuple[Pair, ...]
    kept: str = ""

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the layer on one image, over all its calls."""
        return self.macs_of((self.spec,))

    def macs_of(self, chain: Chain) -> int:
        """Multiply-accumulates of `chain` in the layer's place."""
        return sum(chain_macs(chain, size) for size in self.sizes)


@dataclass(frozen=True, repr=False)
class LayerPlan:
    """What one layer of geometry `spec` becomes; `macs` are those of one image as (before, after).

    `chain` is what runs: the method's stages at this rank, or, with a `lowering`, `lowering.lower` of them.
    """

    spec: ConvSpec
    method: str
    rank: Rank
    chain: Chain
    macs: Pair = (0, 0)
    options: dict[str, Any] = field(default_factory=dict)
    lowering: str = ""

    @property
    def params(self) -> Pair:
        """Weights and biases as (before, after)."""
        return self.spec.params, chain_params(self.chain)

    def __repr__(self) -> str:
        return layer_plan_in_words(self)


@dataclass(repr=False)
class Plan:
    """Which layer becomes what; `kept` holds the reason for every other layer.

    `memory_format` is the order in memory that the whole network is put in: `contiguous`, `channels_last`, or "" for
    the one it is in. For a budget, `rises` predicts for each layer how much of the accuracy it costs (nats an image
    under the metric kronecker), and `achieved` is the share of the network that is left, by the name of the cost.
    `input_shape` [c, h, w] is that of the image it was made with, where that is known.
    """

    layers: dict[str, LayerPlan] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    metric: str = "frobenius"
    memory_format: str = ""
    rises: dict[str, float] = field(default_factory=dict)
    achieved: dict[str, float] = field(default_factory=dict)
    input_shape: tuple[int, ...] = field(default=(), compare=False)

    def __repr__(self) -> str:
        return plan_in_words(self)


@dataclass(frozen=True)
class Budget:
    """The share of the original to keep, each in (0, 1]; several hold together. UsageError for anything else."""

    macs: float | None = None
    params: float | None = None
    latency: float | None = None

    def __post_init__(self) -> None:
        for name, share in self.shares.items():
            if not 0 < share <= 1:
                raise UsageError(f"budget {name}={share} is not a share of the original in (0, 1], such as 0.5")
        if not self.shares:
            raise UsageError("a budget needs a share of macs, params or latency, such as macs=0.5")

    @property
    def shares(self) -> dict[str, float]:
        """The shares that were given, by name."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None}

    def __str__(self) -> str:
        return ", ".join(f"{name}={share:g}" for name, share in self.shares.items())


@dataclass(frozen=True)
class LayerProfile:
    """Cost of one layer on one image."""

    layer: str
    spec: ConvSpec
    params: int
    macs: int


@dataclass(frozen=True)
class OtherProfile:
    """What a module computes on one image beside Conv2d and Linear layers, and why it stays as it is."""

    name: str
    kind: str
    params: int
    macs: int
    reason: str


@dataclass(frozen=True)
class Profile:
    """Cost of a network on one image.

    `macs` are those of convolution and linear layers; `other_macs` what matrix products outside of them take
    (attention), as `torch.utils.flop_counter` sees them. `others` are the modules that these are in, most MACs first.
    """

    params: int
    macs: int
    other_macs: int
    size_bytes: int
    layers: tuple[LayerProfile, ...] = field(repr=False)
    input_shape: tuple[int, ...]
    others: tuple[OtherProfile, ...] = field(default=(), repr=False)

    @property
    def total_macs(self) -> int:
        """All multiply-accumulates that were counted."""
        return self.macs + self.other_macs


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one forward pass of a batch.

    `original` is the median of the original network that ran in turns with it, in the memory format it is fastest in.
    """

    median: float
    p10: float
    p90: float
    batch: int
    threads: int
    device: str
    dtype: str
    memory_format: str = "contiguous"
    original: float | None = None


def as_pair(value: int | Sequence[int]) -> Pair:
    """`3` → `(3, 3)`; a sequence of two stays."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """What happens to an image before the network: short side to `resize` pixels, centre crop, normalisation.

    `resize` None scales the whole image to `size` (height, width) instead of cropping. Pixels are in [0, 1] when
    `mean` and `std` are applied.
    """

    size: Pair = (224, 224)
    resize: int | None = 256
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"

    @property
    def channels(self) -> int:
        """The channels of the images, each with its mean and deviation: 3, or 1 for greyscale."""
        return len(self.mean)

    def changed(
        self, size: Pair | None = None, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> Preprocessing:
        """With other numbers where they are given; a `size` scales whole images, a single number is for all channels.

        UsageError for numbers that are not one a channel, not finite, or not positive where they must be.
        """
        changes: dict[str, Any] = {}
        if size is not None:
            if min(size) < 1:
                raise UsageError(f"the input size must be at least 1 pixel, not {size[0]}x{size[1]}")
            changes |= {"size": size, "resize": None}
        for name, values in (("mean", mean), ("std", std)):
            if values is None:
                continue
            numbers = tuple(float(v) for v in values)
            if not all(math.isfinite(v) for v in numbers) or (name == "std" and min(numbers, default=1) <= 0):
                raise UsageError(f"--{name} must be finite numbers{', above 0' * (name == 'std')}, not {list(values)}")
            if len(numbers) not in (1, self.channels):
                count = f"{self.channels} channel{'s' * (self.channels != 1)}"
                raise UsageError(f"--{name} has {len(numbers)} numbers for a network of {count}; give one, or one each")
            changes[name] = numbers * self.channels if len(numbers) == 1 else numbers
        return dataclasses.replace(self, **changes)

    def for_channels(self, channels: int) -> Preprocessing:
        """For images of so many channels: where their number changes, each gets the average mean and deviation."""
        if channels == self.channels:
            return self
        mean, std = (sum(values) / len(values) for values in (self.mean, self.std))
        return dataclasses.replace(self, mean=(mean,) * channels, std=(std,) * channels)


@dataclass(repr=False)
class LayerStatistics:
    """What calibration images tell about one layer with g groups and n = C/g·kh·kw inputs a position.

    The tensors are float32 on the CPU. What was not asked for is None; `mean` is then zero and `rows` 0.
    The order of the n inputs is (channel, y, x), as in `weight.flatten(1)`.
    """

    images: int
    rows: int  # input positions that were sampled; below n the moment is singular
    mean: Tensor  # [g, n], of the inputs
    moment: Tensor | None = None  # [g, n, n], centred second moment of the inputs
    samples: Tensor | None = None  # [rows, g·n], centred inputs, in place of the moment where n is very large
    gradient: Tensor | None = None  # [F, F], mean over images of Σ over positions of ggᵀ, g = d loss / d output
    sensitivity: Tensor | None = None  # [F, C/g, kh, kw], mean square of the per-image gradients toward wrong classes

    def __repr__(self) -> str:
        known = [f.name for f in dataclasses.fields(self)[2:] if getattr(self, f.name) is not None]
        return f"<LayerStatistics of {self.images} images, {self.rows} rows: {', '.join(known)}>"
