"""Layers and the stages of chains: geometry, params, MACs. Plain values without torch modules."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    pass


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


def as_pair(value: int | Sequence[int]) -> Pair:
    """`3` → `(3, 3)`; a sequence of two stays."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))
