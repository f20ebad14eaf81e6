"""Convolutions side by side: composite basis filters (Ioannou et al. 2016), such as 1×3 ‖ 3×1 ‖ 3×3."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from cnncompress.chains.stages.base import Pair, TensorSpec, as_pairs, register
from cnncompress.chains.stages.convolution import Convolution, ConvSpec
from cnncompress.chains.stages.within import WithinConvolution
from cnncompress.files.reading import Schema
from cnncompress.files.schemas import Channels, Extents, Paddings

if TYPE_CHECKING:
    from torch import Tensor, nn


class BranchSchema(Schema):
    """A `Branch` in JSON."""

    out_channels: Channels
    kernel_size: Extents
    offset: Paddings


class ParallelSchema(Convolution):
    """A `Parallel` in JSON."""

    kind: Literal["parallel"]  # type: ignore[assignment]
    branches: Annotated[list[BranchSchema], Field(min_length=1, max_length=1024)]

    @model_validator(mode="after")
    def _aligned(self) -> ParallelSchema:
        Parallel.from_json(self.kind, self.model_dump(exclude={"kind"}))
        return self


@dataclass(frozen=True)
class Branch:
    """One of the convolutions: its filters, in all groups together, and where their taps lie in the whole kernel."""

    out_channels: int
    kernel_size: Pair
    offset: Pair = (0, 0)


@register("parallel")
@dataclass(frozen=True)
class Parallel(WithinConvolution):
    """Convolutions of the same input whose outputs follow on each other, in each group.

    `whole` is the geometry of the one convolution that does the same: its kernel [F, C/g, kh, kw] has room for the
    taps of every branch, and is zero elsewhere. So each branch has the padding that aligns its output with the others'.
    ValueError where a branch does not fit into the whole.
    """

    branches: tuple[Branch, ...]

    kind = "parallel"
    schema: ClassVar[type[Schema]] = ParallelSchema
    free_inputs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        filters = [branch.out_channels for branch in self.branches]
        if self.whole.linear:
            raise ValueError("a parallel stage is of convolutions")
        if sum(filters) != self.whole.out_channels or any(n < 1 or n % self.groups for n in filters):
            raise ValueError(f"{filters} filters are not {self.whole.out_channels} in {self.groups} groups")
        for branch in self.branches:
            for taps, offset, room in zip(branch.kernel_size, branch.offset, self.whole.kernel_size, strict=True):
                if offset < 0 or taps < 1 or offset + taps > room:
                    raise ValueError(f"a kernel of {taps} taps from {offset} on is not within one of {room}")

    @classmethod
    def centred(cls, whole: ConvSpec, filters: Mapping[Pair, int]) -> Self:
        """`filters` of each kernel size in the middle of the whole kernel; `whole` may have any number of filters."""
        (kh, kw), parts = whole.kernel_size, filters.items()
        branches = tuple(Branch(n, (h, w), ((kh - h) // 2, (kw - w) // 2)) for (h, w), n in parts)
        return cls(whole.replace(out_channels=sum(filters.values())), branches)

    # --- costs and shapes ---

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """`(F, C/g, kh, kw)` of the whole kernel."""
        return self.whole.weight_shape

    @property
    def weights(self) -> int:
        """Number of weights, without the bias and without the zeros around them."""
        taps = sum(branch.out_channels * math.prod(branch.kernel_size) for branch in self.branches)
        return taps * self.in_channels // self.groups

    def tensors(self) -> dict[str, TensorSpec]:
        """The weight and the bias of every branch."""
        specs = [self._convolution(branch).tensors() for branch in self.branches]
        return {f"{i}.{name}": tensor for i, tensors in enumerate(specs) for name, tensor in tensors.items()}

    def macs(self, size: Pair) -> int:
        """Multiply-accumulates of all branches for an input of height and width `size`."""
        height, width = self.output_size(size)
        return self.weights * height * width

    # --- its module ---

    def module(self, split: bool = False, **factory: Any) -> nn.Module:
        """A `ParallelConv2d` of one convolution a branch."""
        from cnncompress.chains.layers import ParallelConv2d

        zeros, common = self.whole.padding_mode == "zeros", self._pads((0, 0), self.whole.kernel_size)
        convolutions, windows = [], []
        for branch in self.branches:
            left, right, top, bottom = self._pads(branch.offset, branch.kernel_size)
            simple = zeros and left == right >= 0 and top == bottom >= 0
            spec = self._convolution(branch).replace(padding=(top, left) if simple else (0, 0))
            convolutions.append(spec.module(split, **factory))
            pads = (left, right, top, bottom)
            around = pads if zeros else tuple(p - c for p, c in zip(pads, common, strict=True))
            windows.append((0, 0, 0, 0) if simple else around)
        outer = ((0, 0, 0, 0), "constant") if zeros else (common, self.whole.padding_mode)
        return ParallelConv2d(convolutions, windows, *outer, self.groups)

    def read_kernel(self, module: Any) -> Tensor:
        """The whole kernel [F, C/g, kh, kw]: every branch's weight at its place, zero elsewhere."""
        F, C, kh, kw = self.weight_shape
        kernel = module[0].weight.new_zeros(self.groups, F // self.groups, C, kh, kw)
        for convolution, place in zip(module, self._places(), strict=True):
            kernel[place] = convolution.weight.detach().unflatten(0, (self.groups, -1))
        return kernel.flatten(0, 1)

    def write_kernel(self, module: Any, kernel: Tensor) -> None:
        """Put the parts of a whole kernel into the branches; biases become zero."""
        parts = kernel.unflatten(0, (self.groups, -1))
        for convolution, branch, place in zip(module, self.branches, self._places(), strict=True):
            self._convolution(branch).write_kernel(convolution, parts[place].flatten(0, 1))

    def read_bias(self, module: Any) -> Tensor | None:
        """The bias [F] in the order of the outputs, or None."""
        import torch

        if not self.bias:
            return None
        return torch.cat([c.bias.detach().unflatten(0, (self.groups, -1)) for c in module], 1).flatten()

    def add_to_bias(self, module: Any, shift: Tensor) -> None:
        """Add `shift` [F] to the biases."""
        parts = shift.unflatten(0, (self.groups, -1))
        for convolution, place in zip(module, self._places(), strict=True):
            convolution.bias.data += parts[place[:2]].flatten().to(convolution.bias)

    # --- in a chain ---

    def compose(self, before: Tensor | None, kernel: Tensor) -> Tensor:
        """Composes as the whole convolution does; entries of the kernel outside of the branches are ignored."""
        inside = kernel.new_zeros(kernel.shape).unflatten(0, (self.groups, -1))
        for place in self._places():
            inside[place] = 1
        return self.whole.compose(before, kernel * inside.flatten(0, 1))

    def in_groups(self, groups: int) -> Self:
        """`groups` copies of this stage side by side, as one whose branches have that many times the groups."""
        branches = tuple(Branch(b.out_channels * groups, b.kernel_size, b.offset) for b in self.branches)
        return type(self)(self.whole.in_groups(groups), branches)

    def ungrouped(self) -> Self:
        """The branches of one group after those of another, each on all channels."""
        g = self.groups
        branches = tuple(Branch(b.out_channels // g, b.kernel_size, b.offset) for b in self.branches)
        return type(self)(self.whole.ungrouped(), branches * g)

    def ungroup(self, kernel: Tensor) -> Tensor:
        """The block-diagonal kernel without groups."""
        return self.whole.ungroup(kernel)

    # --- on disk ---

    def to_json(self) -> dict[str, Any]:
        """The fields of the whole convolution, and the branches."""
        branches = [
            {"out_channels": b.out_channels, "kernel_size": b.kernel_size, "offset": b.offset} for b in self.branches
        ]
        return {**self.whole.to_json(), "branches": branches}

    @classmethod
    def from_json(cls, kind: str, values: Mapping[str, Any]) -> Self:
        """The stage of `to_json`; KeyError, TypeError or ValueError for anything else."""
        whole = {key: value for key, value in values.items() if key != "branches"}
        branches = tuple(Branch(**as_pairs(branch)) for branch in values["branches"])
        return cls(ConvSpec.from_json("conv2d", whole), branches)

    def __str__(self) -> str:
        parts = " ‖ ".join(f"{'×'.join(map(str, b.kernel_size))} →{b.out_channels}" for b in self.branches)
        groups = f" in {self.groups} groups" if self.groups > 1 else ""
        return f"{self.in_channels} to {parts}{groups}"

    # --- places ---

    def _convolution(self, branch: Branch) -> ConvSpec:
        """The branch alone, without padding."""
        changes = {"out_channels": branch.out_channels, "kernel_size": branch.kernel_size}
        return self.whole.replace(**changes, padding=(0, 0), padding_mode="zeros")

    def _places(self) -> list[tuple[slice, ...]]:
        """The place of each branch's weight [g, F/g, C/g, bh, bw] in the whole kernel [g, F/g, C/g, kh, kw]."""
        places: list[tuple[slice, ...]] = []
        start = 0
        for branch in self.branches:
            stop, (y, x), (h, w) = start + branch.out_channels // self.groups, branch.offset, branch.kernel_size
            places.append((slice(None), slice(start, stop), slice(None), slice(y, y + h), slice(x, x + w)))
            start = stop
        return places

    def _pads(self, offset: Pair, taps: Pair) -> tuple[int, int, int, int]:
        """Padding left, right, above and below for a branch; negative where it leaves out parts of the input."""
        sides: list[int] = []
        for axis in (1, 0):
            step, room = self.whole.dilation[axis], self.whole.kernel_size[axis]
            if isinstance(self.whole.padding, str):
                low, high = step * (room - 1) // 2, -(-step * (room - 1) // 2)
            else:
                low = high = self.whole.padding[axis]
            sides += [low - step * offset[axis], high - step * (room - offset[axis] - taps[axis])]
        left, right, top, bottom = sides
        return left, right, top, bottom
