"""Residual networks with the stride on the first 1×1 of a block (He et al. 2016), untrained: Deep Roots' baseline."""

from __future__ import annotations

import torch
from torch import nn

from cnncompress.models.builtin.base import BuiltIn, register
from cnncompress.network.preprocessing import Preprocessing

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}  # by depth


class ResNetV1(nn.Module):
    """A residual network of bottlenecks for 3×224×224 images, with a bias in its first convolution.

    With depth 50 it has 3,857,973,248 MACs, and 25,503,976 parameters beside 53,120 of batch normalisations. Deep Roots
    (Ioannou et al. 2017) prints 3,857,974,312, which has one addition for each of the 1,064 biases.
    """

    def __init__(self, num_classes: int = 1000, depth: int = 50) -> None:
        super().__init__()
        if depth not in BLOCKS:
            raise ValueError(f"depth is one of {', '.join(map(str, BLOCKS))}, not {depth}")
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, padding=3), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1)
        )
        stages, channels = [], 64
        for i, blocks in enumerate(BLOCKS[depth]):
            width = 64 * 2**i
            first = Bottleneck(channels, width, stride=2 if i else 1)
            channels = 4 * width
            stages.append(nn.Sequential(first, *(Bottleneck(channels, width) for _ in range(blocks - 1))))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores `[N, classes]` of images `[N, 3, 224, 224]`."""
        return self.head(self.stages(self.stem(images)).mean((2, 3)))


class Bottleneck(nn.Module):
    """1×1 with the stride, 3×3, 1×1 of four times the width; a 1×1 beside them where the input has other channels."""

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.reduce, self.norm1 = nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width)
        self.spatial, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.expand, self.norm3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        other = nn.Conv2d(channels, 4 * width, 1, stride, bias=False)
        self.shortcut = nn.Sequential(other, nn.BatchNorm2d(4 * width)) if channels != 4 * width else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, 4·width, h, w] for [N, channels, H, W]."""
        shortcut = x if self.shortcut is None else self.shortcut(x)
        x = self.norm1(self.reduce(x)).relu()
        x = self.norm2(self.spatial(x)).relu()
        return (self.norm3(self.expand(x)) + shortcut).relu()


register("resnet50_v1", BuiltIn(ResNetV1, None, Preprocessing()))
