"""The module of the stage `normalised`: a plain convolution that trains with batch normalisation."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from cnncompress.chains.stages import ConvSpec


class NormalisedConv2d(nn.Conv2d):
    """A `Conv2d` with the mean and the variance [F] of its outputs without bias in buffers; `norm` while it trains."""

    mean: Tensor
    variance: Tensor
    norm: nn.BatchNorm2d | None

    def __init__(self, spec: ConvSpec, device: Any = None, dtype: Any = None) -> None:
        geometry = spec.stride, spec.padding, spec.dilation, spec.groups, spec.bias, cast(Any, spec.padding_mode)
        super().__init__(spec.in_channels, spec.out_channels, spec.kernel_size, *geometry, device=device, dtype=dtype)
        self.register_buffer("mean", torch.zeros(spec.out_channels, device=device, dtype=torch.float32))
        self.register_buffer("variance", torch.ones(spec.out_channels, device=device, dtype=torch.float32))
        self.norm = None

    def forward(self, input: Tensor) -> Tensor:
        """[n, F, h, w] for images [n, C, H, W]."""
        output = super().forward(input)
        return output if self.norm is None else self.norm(output)

    @torch.no_grad()
    def start_training(self) -> bool:
        """Put a normalisation in the place of the bias; the outputs stay."""
        weight, bias = self.weight, cast(nn.Parameter, self.bias)
        norm = nn.BatchNorm2d(self.out_channels, device=weight.device, dtype=weight.dtype)
        mean, variance = _statistics(norm)
        mean.copy_(self.mean)
        variance.copy_(self.variance)
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.copy_(mean + bias)
        norm.requires_grad_(weight.requires_grad)
        self.norm = norm.train(self.training)
        self.register_parameter("bias", None)
        return True

    @torch.no_grad()
    def fold(self) -> bool:
        """Put the normalisation into the weight and the bias; False where there is none."""
        norm = self.norm
        if norm is None:
            return False
        mean, variance = _statistics(norm)
        scale = norm.weight / (variance + norm.eps).sqrt()
        self.mean.copy_(mean * scale)
        self.variance.copy_(variance * scale.square())
        self.weight.mul_(scale[:, None, None, None])
        bias = (norm.bias - mean * scale).to(self.weight.dtype)
        self.register_parameter("bias", nn.Parameter(bias, requires_grad=norm.bias.requires_grad))
        self.norm = None
        return True


def _statistics(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The mean and the variance [F] that a normalisation uses in eval mode."""
    return cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
