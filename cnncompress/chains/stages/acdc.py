"""Convolutions whose weights are products of diagonals and cosine transforms (SECL 2018, eq. 2)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator

from cnncompress.chains.stages.base import Pair, Stage, TensorSpec, register
from cnncompress.chains.stages.convolution import Convolution, ConvSpec
from cnncompress.chains.stages.within import WithinConvolution
from cnncompress.files.reading import Schema
from cnncompress.files.schemas import Channels

if TYPE_CHECKING:
    from torch import Tensor, nn


class AcdcSchema(Convolution):
    """An `Acdc` in JSON."""

    kind: Literal["acdc"]  # type: ignore[assignment]
    depth: Channels

    @model_validator(mode="after")
    def _pointwise(self) -> AcdcSchema:
        Acdc.from_json(self.kind, self.model_dump(exclude={"kind"}))
        return self


@register("acdc")
@dataclass(frozen=True)
class Acdc(WithinConvolution):
    """The convolution `whole`, whose matrix in each group is that of `depth` layers of `maths.acdc.acdc_matrix`.

    The matrix [F/g, C/g] is that of a pointwise convolution; that of each channel of a depthwise one is its filter
    [kh, kw]. The kernel of the stage is the diagonals [g·depth, 2, n], those of one group after another, with n the
    larger side of the matrix. It runs as a plain convolution, and trains as the diagonals, which are stored beside the
    weight. ValueError where `whole` is neither, and for a depthwise one of several filters a channel.
    """

    depth: int = 12

    kind = "acdc"
    schema: ClassVar[type[Schema]] = AcdcSchema
    linear_kernel: ClassVar[bool] = False
    weight_decay: ClassVar[float | None] = 8.8e-6

    def __post_init__(self) -> None:
        one_filter = self.groups == self.in_channels == self.out_channels
        if self.whole.linear or not (self.whole.pointwise or one_filter) or self.depth < 1:
            raise ValueError(f"{self.depth} layers of diagonals are not {self.whole}")

    # --- costs and shapes ---

    @property
    def width(self) -> int:
        """The entries n of a diagonal: the larger side of a group's matrix."""
        sides = (self.in_channels // self.groups, self.out_channels // self.groups)
        return max(sides if self.whole.pointwise else self.whole.kernel_size)

    def tensors(self) -> dict[str, TensorSpec]:
        """The weight, the bias where there is one, and the diagonals."""
        import torch

        shape = (self.groups * self.depth, 2, self.width)
        return self.whole.tensors() | {"diagonals": TensorSpec(shape, torch.float32)}

    @property
    def trained_params(self) -> int:
        """Entries of the diagonals, and biases."""
        return 2 * self.groups * self.depth * self.width + (self.out_channels if self.bias else 0)

    def macs(self, size: Pair) -> int:
        """Those of the plain convolution."""
        return self.whole.macs(size)

    def fewest_macs(self, size: Pair) -> int:
        """Those of the fast transforms, where these are fewer than the plain convolution's (from 603 channels on).

        On a CPU they take longer up to 4096 channels at least (docs/results.md), so the plain convolution is what runs.
        Transforms make the filters of a depthwise convolution, and are not what is done at each position.
        """
        if not self.whole.pointwise:
            return self.macs(size)
        height, width = self.output_size(size)
        return min(self.macs(size), self.groups * fast_macs(self.width, self.depth) * height * width)

    # --- its module ---

    def module(self, split: bool = False, **factory: Any) -> nn.Module:
        """An `AcdcConv2d`."""
        from cnncompress.chains.acdc import AcdcConv2d

        return AcdcConv2d(self.whole, self.tensors()["diagonals"], **factory)

    def read_kernel(self, module: Any) -> Tensor:
        """The diagonals."""
        return module.diagonals

    def write_kernel(self, module: Any, kernel: Tensor) -> None:
        """Put diagonals into a module, and the weight that they make; a bias becomes zero."""
        module.write(kernel)
        if module.bias is not None:
            module.bias.data.zero_()

    def read_bias(self, module: Any) -> Tensor | None:
        """The bias [F], or None."""
        return self.whole.read_bias(module)

    def add_to_bias(self, module: Any, shift: Tensor) -> None:
        """Add `shift` [F] to the bias."""
        self.whole.add_to_bias(module, shift)

    # --- its training form ---

    def start_training(self, module: Any) -> bool:
        """The diagonals; False where the weight is no longer the one that they make, and trains as it is."""
        return module.start_training()

    def fold(self, module: Any) -> bool:
        """Keep the diagonals, and the weight that they make."""
        return module.fold()

    # --- in a chain ---

    def compose(self, before: Tensor | None, kernel: Tensor) -> Tensor:
        """Composes as the plain convolution does; not linear in the diagonals."""
        return self.whole.compose(before, self._weight(kernel))

    def in_groups(self, groups: int) -> Self:
        """`groups` copies of this stage side by side, as one with that many times the groups."""
        return type(self)(self.whole.in_groups(groups), self.depth)

    def ungrouped(self) -> Stage:
        """The plain convolution without groups."""
        return self.whole.ungrouped() if self.groups > 1 else self

    def ungroup(self, kernel: Tensor) -> Tensor:
        """The block-diagonal weight."""
        return self.whole.ungroup(self._weight(kernel)) if self.groups > 1 else kernel

    def _weight(self, kernel: Tensor) -> Tensor:
        from cnncompress.chains.acdc import product

        return product(self.whole, kernel.double())

    # --- on disk ---

    def to_json(self) -> dict[str, Any]:
        """The fields of the plain convolution, and the depth."""
        return {**self.whole.to_json(), "depth": self.depth}

    @classmethod
    def from_json(cls, kind: str, values: Mapping[str, Any]) -> Self:
        """The stage of `to_json`; KeyError, TypeError or ValueError for anything else."""
        whole = {key: value for key, value in values.items() if key != "depth"}
        return cls(ConvSpec.from_json("conv2d", whole), values["depth"])

    def __str__(self) -> str:
        groups = f" in {self.groups} groups" if self.groups > 1 else ""
        return f"{self.in_channels} to {self.depth} layers of diagonals →{self.out_channels}{groups}"


def fast_macs(n: int, depth: int) -> int:
    """Multiply-accumulates of `depth` layers of n channels with fast transforms: 4n + 5n·log₂n each (SECL, §4.1)."""
    return math.ceil(depth * (4 * n + 5 * n * math.log2(n)))
