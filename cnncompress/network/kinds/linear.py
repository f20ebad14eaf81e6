"""Linear layers: matrices on the last axis of their input."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from cnncompress.chains.spec import ConvSpec, Pair
from cnncompress.network.kinds.base import LayerKind, precise, put, register


@register(nn.Linear)
class LinearKind(LayerKind):
    """`torch.nn.Linear`. Inputs are [..., C]; its weight is seen as W[F, C, 1, 1]."""

    channel_axis: ClassVar[int] = -1
    adjustable: ClassVar[bool] = False

    def spec(self, module: nn.Linear) -> ConvSpec:
        """Its widths."""
        return ConvSpec(module.in_features, module.out_features, bias=module.bias is not None, linear=True)

    def is_plain(self, module: nn.Linear) -> bool:
        """True for the forward pass of torch."""
        return type(module).forward is nn.Linear.forward

    def narrow(self, module: nn.Linear, spec: ConvSpec, kernel: Tensor, bias: Tensor | None) -> None:
        """Change its widths."""
        module.in_features, module.out_features = spec.in_channels, spec.out_channels
        put(module, kernel.flatten(1), bias)

    def image_channels(self, module: nn.Linear) -> int | None:
        """None: it takes vectors."""
        return None

    def sizes(self, x: Tensor) -> list[Pair]:
        """The leading positions and 1."""
        return [(x.numel() // x.shape[-1], 1)]

    def position_count(self, x: Tensor, spec: ConvSpec) -> int:
        """The leading positions."""
        return x.numel() // x.shape[-1]

    def patches(self, x: Tensor, spec: ConvSpec, index: Tensor) -> Tensor:
        """The vectors [R, 1, C]."""
        return precise(x.reshape(-1, 1, x.shape[-1])[index.to(x.device)])
