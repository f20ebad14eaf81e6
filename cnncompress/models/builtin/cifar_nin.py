"""Network in network for CIFAR (Lin et al. 2014), untrained: the baseline of Deep Roots (Ioannou et al. 2017)."""

from __future__ import annotations

import torch
from torch import nn

from cnncompress.models.builtin.base import BuiltIn, register
from cnncompress.network.preprocessing import Preprocessing


class CifarNIN(nn.Module):
    """Three spatial convolutions, two 1×1 after each, for 3×32×32 images: 966,986 parameters and 222,486,528 MACs.

    Deep Roots prints 222,487,946, which has one addition for each of the 1,418 biases in it. `width_mult` is a
    share of the filters.
    """

    def __init__(self, num_classes: int = 10, width_mult: float = 1.0) -> None:
        super().__init__()
        first, second, third, wide = (int(width_mult * width) for width in (192, 160, 96, 192))
        self.features = nn.Sequential(
            *_block(3, 5, (first, second, third)),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Dropout(),
            *_block(third, 5, (wide, wide, wide)),
            nn.AvgPool2d(3, 2, ceil_mode=True),
            nn.Dropout(),
            *_block(wide, 3, (wide, wide, num_classes)),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores `[N, classes]` of images `[N, 3, 32, 32]`."""
        return self.features(images).mean((2, 3))


def _block(channels: int, size: int, widths: tuple[int, int, int]) -> list[nn.Module]:
    """A convolution of kernel `size` and two of 1×1, each with ReLU."""
    layers: list[nn.Module] = []
    for width, kernel in zip(widths, (size, 1, 1), strict=True):
        layers += [nn.Conv2d(channels, width, kernel, padding=kernel // 2), nn.ReLU(inplace=True)]
        channels = width
    return layers


register(
    "cifar_nin",
    BuiltIn(
        CifarNIN,
        None,
        Preprocessing(size=(32, 32), resize=None, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
    ),
)
