"""Wide residual networks for CIFAR (Zagoruyko and Komodakis 2016), untrained: the teacher of SECL is WRN-40-2."""

from __future__ import annotations

import torch
from torch import nn

from cnncompress.models.builtin.base import BuiltIn, register
from cnncompress.network.preprocessing import Preprocessing


class WideResNet(nn.Module):
    """A residual network of `depth` layers, `width` times as wide, for 3×32×32 images.

    With depth 40 and width 2 it has 2,243,546 parameters.
    """

    def __init__(self, num_classes: int = 10, depth: int = 40, width: int = 2) -> None:
        super().__init__()
        widths, blocks = [16, 16 * width, 32 * width, 64 * width], (depth - 4) // 6
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        stages = []
        for i in range(3):
            first = Block(widths[i], widths[i + 1], stride=1 if i == 0 else 2)
            stages.append(nn.Sequential(first, *(Block(widths[i + 1], widths[i + 1]) for _ in range(blocks - 1))))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(widths[3])
        self.head = nn.Linear(widths[3], num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores `[N, classes]` of images `[N, 3, 32, 32]`."""
        return self.head(self.norm(self.stages(self.stem(images))).relu().mean((2, 3)))


class Block(nn.Module):
    """Normalisation and ReLU before each of two 3×3 convolutions; a 1×1 beside them where widths differ."""

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(channels, width, 1, stride, bias=False) if channels != width else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, width, h, w] for [N, channels, H, W]."""
        normed = self.norm1(x).relu()
        shortcut = x if self.shortcut is None else self.shortcut(normed)
        return shortcut + self.conv2(self.norm2(self.conv1(normed)).relu())


register(
    "wrn_40_2",
    BuiltIn(
        WideResNet,
        None,
        Preprocessing(size=(32, 32), resize=None, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
    ),
)
