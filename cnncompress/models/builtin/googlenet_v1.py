"""GoogLeNet as published (Szegedy et al. 2015), untrained: a baseline of Ioannou et al. 2016, low-rank filters."""

from __future__ import annotations

import torch
from torch import nn

from cnncompress.models.builtin.base import BuiltIn, register
from cnncompress.network.preprocessing import Preprocessing

INCEPTIONS = (  # filters of 1×1; 1×1 and 3×3; 1×1 and 5×5; 1×1 after the pooling
    (64, 96, 128, 16, 32, 32),
    (128, 128, 192, 32, 96, 64),
    (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
    (256, 160, 320, 32, 128, 128),
    (384, 192, 384, 48, 128, 128),
)
POOLED_AFTER = (2, 7)  # so many inceptions


class GoogLeNet(nn.Module):
    """Nine inceptions with 5×5 kernels, biases and no batch normalisation, for 3×224×224 images; no auxiliary heads.

    Its convolutions have 5,973,552 parameters and 1,581,647,872 MACs; the paper prints 5.97 and 1.59.
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.stem = nn.Sequential(
            *(nn.Conv2d(3, 64, 7, stride=2, padding=3), nn.ReLU(), pool, nn.LocalResponseNorm(5)),
            *(nn.Conv2d(64, 64, 1), nn.ReLU()),
            *(nn.Conv2d(64, 192, 3, padding=1), nn.ReLU(), nn.LocalResponseNorm(5), pool),
        )
        layers: list[nn.Module] = []
        channels = 192
        for i, widths in enumerate(INCEPTIONS):
            layers += [pool] if i in POOLED_AFTER else []
            layers.append(Inception(channels, widths))
            channels = widths[0] + widths[2] + widths[4] + widths[5]
        self.inceptions = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Dropout(0.4), nn.Linear(channels, num_classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores `[N, classes]` of images `[N, 3, 224, 224]`."""
        return self.head(self.inceptions(self.stem(images)).mean((2, 3)))


class Inception(nn.Module):
    """1×1, 1×1 to 3×3, 1×1 to 5×5 and pooling to 1×1, side by side."""

    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        one, before_three, three, before_five, five, pooled = widths
        self.one, self.pooled = nn.Conv2d(channels, one, 1), nn.Conv2d(channels, pooled, 1)
        self.before_three, self.before_five = nn.Conv2d(channels, before_three, 1), nn.Conv2d(channels, before_five, 1)
        self.three = nn.Conv2d(before_three, three, 3, padding=1)
        self.five = nn.Conv2d(before_five, five, 5, padding=2)
        self.pool = nn.MaxPool2d(3, 1, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, sum of the filters, h, w] for [N, channels, h, w]."""
        three, five = self.three(self.before_three(x).relu()), self.five(self.before_five(x).relu())
        return torch.cat([self.one(x), three, five, self.pooled(self.pool(x))], 1).relu()


register("googlenet_v1", BuiltIn(GoogLeNet, None, Preprocessing()))
