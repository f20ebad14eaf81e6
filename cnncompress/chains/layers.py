"""The torch modules of stages that torch has no module for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad
from torch.nn.utils import parametrize

Pads = tuple[int, ...]


class Permute(nn.Module):
    """A fixed channel permutation, on dimension 1 of images or the last of vectors."""

    index: Tensor

    def __init__(self, channels: int, linear: bool = False, device: Any = None) -> None:
        super().__init__()
        self.register_buffer("index", torch.arange(channels, device=device))
        self.dim = -1 if linear else 1

    def forward(self, x: Tensor) -> Tensor:
        """`x` with its channels reordered."""
        return x.index_select(self.dim, self.index)


class SplitConv2d(nn.Conv2d):
    """A grouped convolution that runs as one dense convolution a group; its tensors are those of a Conv2d."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input = pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        biases = [None] * self.groups if bias is None else bias.chunk(self.groups)
        parts = zip(input.chunk(self.groups, -3), weight.chunk(self.groups), biases, strict=True)
        return torch.cat([conv2d(x, w, b, self.stride, padding, self.dilation) for x, w, b in parts], -3)


class ParallelConv2d(nn.ModuleList):
    """Convolutions of the same input, their outputs one after another in each of `groups`.

    The input is padded by `padding` (left, right, above, below) in `mode` for all, and then by `windows` with zeros
    for each; negative numbers leave parts of it out.
    """

    def __init__(
        self, convolutions: Sequence[nn.Module], windows: Sequence[Pads], padding: Pads, mode: str, groups: int
    ) -> None:
        super().__init__(convolutions)
        self.windows, self.padding, self.mode, self.groups = tuple(windows), padding, mode, groups

    def forward(self, x: Tensor) -> Tensor:
        """[n, F, h, w] for `x` [n, C, h, w], or both without the first dimension."""
        x = pad(x, self.padding, self.mode) if any(self.padding) else x
        parts = [c(pad(x, window) if any(window) else x) for c, window in zip(self, self.windows, strict=True)]
        if self.groups == 1:
            return torch.cat(parts, -3)
        return torch.cat([part.unflatten(-3, (self.groups, -1)) for part in parts], -3).flatten(-4, -3)


def fold_parametrizations(module: nn.Module) -> bool:
    """Make the parametrized tensors of a module plain parameters of their present values; False where there are none.

    The class of a parametrized module is shared with its deep copies, so it stays as it is.
    """
    if not parametrize.is_parametrized(module):
        return False
    forms = cast(nn.ModuleDict, module.parametrizations)
    trains = {name: any(p.requires_grad for p in form.parameters()) for name, form in forms.items()}
    values = {name: getattr(module, name).detach().clone() for name in forms}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value, requires_grad=trains[name]))
    return True
