"""The plain stage: a convolution, or a matrix on vectors. It is the geometry of a layer, too."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast

from pydantic import model_validator

from cnncompress.chains.stages.base import Pair, Stage, TensorSpec, as_pairs, register
from cnncompress.files.reading import Schema
from cnncompress.files.schemas import Channels, Extents, Paddings

if TYPE_CHECKING:
    from torch import Tensor, nn


class Convolution(Schema):
    """A `ConvSpec` in JSON."""

    kind: Literal["conv2d", "linear"]
    in_channels: Channels
    out_channels: Channels
    kernel_size: Extents
    stride: Extents
    padding: Paddings | Literal["same"]
    dilation: Extents
    groups: Channels
    bias: bool
    padding_mode: Literal["zeros", "reflect", "replicate", "circular"]

    @model_validator(mode="after")
    def _fits(self) -> Convolution:
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(f"{self.in_channels} and {self.out_channels} channels are not in {self.groups} groups")
        if self.kind == "linear" and (self.kernel_size != [1, 1] or self.groups > 1):
            raise ValueError("a linear layer has no kernel size and no groups")
        return self


@register("conv2d", "linear")
@dataclass(frozen=True)
class ConvSpec(Stage):
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

    schema: ClassVar[type[Schema]] = Convolution
    free_inputs: ClassVar[bool] = True
    free_kernel: ClassVar[bool] = True

    @property
    def kind(self) -> str:
        """`linear` or `conv2d`."""
        return "linear" if self.linear else "conv2d"

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

    def in_groups(self, groups: int) -> Self:
        """`groups` copies of this convolution side by side, as one with that many times the groups."""
        widths = {"in_channels": self.in_channels * groups, "out_channels": self.out_channels * groups}
        return self.replace(**widths, groups=self.groups * groups)

    def ungrouped(self) -> Self:
        """The convolution without groups."""
        return self.replace(groups=1)

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def tensors(self) -> dict[str, TensorSpec]:
        """The weight, and the bias where there is one."""
        F, C, kh, kw = self.weight_shape
        weight = {"weight": TensorSpec((F, C) if self.linear else (F, C, kh, kw))}
        return weight | ({"bias": TensorSpec((F,))} if self.bias else {})

    def macs(self, size: Pair) -> int:
        """Multiply-accumulates for an input of height and width `size`."""
        height, width = self.output_size(size)
        return self.weights * height * width

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

    def module(self, split: bool = False, **factory: Any) -> nn.Module:
        """A `Linear`, a `Conv2d` or, with `split` and groups of several channels, a `SplitConv2d`."""
        from torch import nn

        from cnncompress.chains.layers import SplitConv2d

        if self.linear:
            return nn.Linear(self.in_channels, self.out_channels, self.bias, **factory)
        return (SplitConv2d if split and self.groups > 1 and not self.depthwise else nn.Conv2d)(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.bias,
            cast(Any, self.padding_mode),
            **factory,
        )

    def read_kernel(self, module: Any) -> Tensor:
        """The weight as [F, C/g, kh, kw]."""
        return module.weight.detach().reshape(self.weight_shape)

    def write_kernel(self, module: Any, kernel: Tensor) -> None:
        """Put a kernel [F, C/g, kh, kw] into the weight; a bias becomes zero."""
        module.weight.data.copy_(kernel.reshape(module.weight.shape))
        if module.bias is not None:
            module.bias.data.zero_()

    def read_bias(self, module: Any) -> Tensor | None:
        """The bias [F], or None."""
        return None if module.bias is None else module.bias.detach()

    def add_to_bias(self, module: Any, shift: Tensor) -> None:
        """Add `shift` [F] to the bias."""
        module.bias.data += shift.to(module.bias)

    def compose(self, before: Tensor | None, kernel: Tensor) -> Tensor:
        """The dense kernel of `before` followed by this convolution."""
        from cnncompress.chains.compose import compose_two, dense_kernel

        return dense_kernel(kernel, self.groups) if before is None else compose_two(before, kernel, self.groups)

    def ungroup(self, kernel: Tensor) -> Tensor:
        """The block-diagonal kernel without groups."""
        from cnncompress.chains.compose import dense_kernel

        return dense_kernel(kernel, self.groups)

    def to_json(self) -> dict[str, Any]:
        """All fields but `linear`, which the kind tells."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "linear"}

    @classmethod
    def from_json(cls, kind: str, values: Mapping[str, Any]) -> Self:
        """The stage of `to_json`; TypeError for a field that is missing or unknown."""
        return cls(**as_pairs(values), linear=kind == "linear")

    def __str__(self) -> str:
        if self.linear:
            return f"Linear {self.in_channels}→{self.out_channels}"
        kh, kw = self.kernel_size
        groups = f" in {self.groups} groups" if self.groups > 1 else ""
        return f"{kh}×{kw} {self.in_channels}→{self.out_channels}{groups}"
