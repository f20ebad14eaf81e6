"""The module of the stage `acdc`: a plain convolution that trains as diagonals."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cnncompress.chains.layers import fold_parametrizations
from cnncompress.chains.stages import ConvSpec, TensorSpec
from cnncompress.maths.acdc import acdc_matrix

ROUNDING = 0.005  # relative difference from what the diagonals make that a weight rounded to half precision may have


def product(whole: ConvSpec, diagonals: Tensor) -> Tensor:
    """The weight [F, C/g, kh, kw] of a pointwise or depthwise convolution that diagonals [g·depth, 2, n] make."""
    parts = diagonals.unflatten(0, (whole.groups, -1))
    if not whole.pointwise:
        rows, columns = whole.kernel_size
        return acdc_matrix(parts, columns, rows)[:, None]
    matrices = acdc_matrix(parts, whole.in_channels // whole.groups, whole.out_channels // whole.groups)
    return matrices.flatten(0, 1)[:, :, None, None]


class Product(nn.Module):
    """The parametrization of a weight [F, C/g, kh, kw] by its `diagonals`, computed in single precision or better."""

    def __init__(self, whole: ConvSpec, diagonals: Tensor) -> None:
        super().__init__()
        self.whole, self.start = whole, diagonals

    def forward(self, diagonals: Tensor) -> Tensor:
        """The weight in the dtype of the diagonals."""
        with torch.autocast(diagonals.device.type, enabled=False):
            precise = diagonals.to(torch.promote_types(diagonals.dtype, torch.float32))
            return product(self.whole, precise).to(diagonals.dtype)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The diagonals that the module has."""
        return self.start.to(weight)


class AcdcConv2d(nn.Conv2d):
    """A `Conv2d` with, in a buffer, the diagonals [g·depth, 2, n] that its weight was made of."""

    diagonals: Tensor

    def __init__(self, whole: ConvSpec, diagonals: TensorSpec, device: Any = None, dtype: Any = None) -> None:
        geometry = whole.stride, whole.padding, whole.dilation, whole.groups, whole.bias, cast(Any, whole.padding_mode)
        super().__init__(
            whole.in_channels, whole.out_channels, whole.kernel_size, *geometry, device=device, dtype=dtype
        )
        self.whole = whole
        self.register_buffer("diagonals", torch.ones(diagonals.shape, device=device, dtype=diagonals.dtype))

    def write(self, diagonals: Tensor) -> None:
        """Keep diagonals, and the weight that they make."""
        self.diagonals.copy_(diagonals)
        self.weight.data.copy_(self.made())

    def made(self) -> Tensor:
        """The weight [F, C/g, kh, kw] that the diagonals make, float64."""
        return product(self.whole, self.diagonals.double())

    def start_training(self) -> bool:
        """Make the diagonals the parameters; False where they do not make the weight."""
        weight, made = self.weight.detach(), self.made()
        if not torch.linalg.vector_norm(weight - made) <= ROUNDING * torch.linalg.vector_norm(made):
            return False
        parametrize.register_parametrization(self, "weight", Product(self.whole, self.diagonals))
        return True

    def fold(self) -> bool:
        """Make the weight the parameter, and keep the diagonals; False where it is the parameter already."""
        if not parametrize.is_parametrized(self):
            return False
        trained = cast(Any, self.parametrizations).weight.original.detach().clone()
        fold_parametrizations(self)
        self.write(trained)
        return True
