"""Two-dimensional convolutions."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnncompress.chains.modules import SplitConv2d
from cnncompress.chains.spec import ConvSpec, Pair, as_pair
from cnncompress.network.kinds.base import LayerKind, precise, put, register
from cnncompress.network.memory_format import is_channels_last


@register(nn.Conv2d)
class Conv2dKind(LayerKind):
    """`torch.nn.Conv2d`, grouped ones included. Inputs are [b, C, H, W] or [C, H, W]."""

    channel_axis: ClassVar[int] = -3

    def spec(self, module: nn.Conv2d) -> ConvSpec:
        """Its geometry; padding "valid" is none."""
        padding: Pair | Literal["same"] = (0, 0)
        if module.padding == "same":
            padding = "same"
        elif not isinstance(module.padding, str):
            padding = as_pair(module.padding)
        return ConvSpec(
            module.in_channels,
            module.out_channels,
            as_pair(module.kernel_size),
            as_pair(module.stride),
            padding,
            as_pair(module.dilation),
            module.groups,
            module.bias is not None,
            module.padding_mode,
        )

    def is_plain(self, module: nn.Conv2d) -> bool:
        """True for the forward pass of torch, and for that of a chain's own convolutions."""
        own = type(module)
        plain = own.forward is nn.Conv2d.forward and own._conv_forward is nn.Conv2d._conv_forward
        return plain or own is SplitConv2d

    def narrow(self, module: nn.Conv2d, spec: ConvSpec, kernel: Tensor, bias: Tensor | None) -> None:
        """Change its widths and groups; the order in memory of its weight stays."""
        order = torch.channels_last if is_channels_last(module.weight) else torch.contiguous_format
        module.in_channels, module.out_channels, module.groups = spec.in_channels, spec.out_channels, spec.groups
        put(module, kernel.contiguous(memory_format=order), bias)

    def image_channels(self, module: nn.Conv2d) -> int | None:
        """C."""
        return self.spec(module).in_channels

    def sizes(self, x: Tensor) -> list[Pair]:
        """One pair for each image: a network may fold patches of one image into the batch."""
        return [(x.shape[-2], x.shape[-1])] * (x.shape[0] if x.dim() == 4 else 1)

    def position_count(self, x: Tensor, spec: ConvSpec) -> int:
        """Images, times the height and width of the output."""
        height, width = spec.output_size((x.shape[-2], x.shape[-1]))
        return (x.shape[0] if x.dim() == 4 else 1) * height * width

    def patches(self, x: Tensor, spec: ConvSpec, index: Tensor) -> Tensor:
        """The patches [R, g, n]; n is in the order (channel, y, x).

        Only these patches are read: there is no padded copy of the input and no unfolding.
        """
        x, index = x if x.dim() == 4 else x[None], index.to(x.device)
        size = (x.shape[-2], x.shape[-1])
        height, width = spec.output_size(size)
        ys = _taps(index // width % height, 0, size[0], spec)
        xs = _taps(index % width, 1, size[1], spec)
        image = (index // (height * width))[:, None, None]
        rows = x[image, :, ys.clamp(min=0)[:, :, None], xs.clamp(min=0)[:, None, :]]
        rows.masked_fill_(((ys < 0)[:, :, None] | (xs < 0)[:, None, :])[..., None], 0)
        return precise(rows.permute(0, 3, 1, 2).reshape(len(index), spec.groups, -1))

    def outputs(self, y: Tensor, spec: ConvSpec, index: Tensor) -> Tensor:
        """The outputs at some positions, without a copy of the whole output [b, F, H, W] or [F, H, W]."""
        y = y if y.dim() == 4 else y[None]
        width = y.shape[-2] * y.shape[-1]
        return precise(y.flatten(2)[index // width, :, index % width])


def _taps(position: Tensor, axis: int, size: int, spec: ConvSpec) -> Tensor:
    """The input coordinates [R, k] under the kernel at output coordinates [R] of one axis; -1 in a zero border."""
    kernel, dilation = spec.kernel_size[axis], spec.dilation[axis]
    if spec.padding == "same":
        before = dilation * (kernel - 1) // 2
        after = dilation * (kernel - 1) - before
    else:
        before = after = spec.padding[axis]
    coordinates = torch.arange(size, dtype=torch.float64, device=position.device)[None, None]
    if spec.padding_mode == "zeros":
        padded = F.pad(coordinates, (before, after), value=-1)
    else:
        padded = F.pad(coordinates, (before, after), spec.padding_mode)
    taps = position[:, None] * spec.stride[axis] + torch.arange(kernel, device=position.device) * dilation
    return padded.flatten().long()[taps]
