"""CaffeNet (Jia et al. 2014), untrained: the AlexNet in two groups that Tai et al. 2016 decompose."""

from __future__ import annotations

import torch
from torch import nn

from cnncompress.models.builtin.base import BuiltIn, register
from cnncompress.network.preprocessing import Preprocessing


class CaffeNet(nn.Module):
    """Five convolutions, the second, fourth and fifth in two groups, for 3×227×227 images.

    They have 2,332,704 weights and 665,784,864 MACs, the whole network 60,965,224 parameters.
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 11, stride=4)
        self.conv2 = nn.Conv2d(96, 256, 5, padding=2, groups=2)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1, groups=2)
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1, groups=2)
        self.pool, self.norm, self.dropout = nn.MaxPool2d(3, 2), nn.LocalResponseNorm(5), nn.Dropout()
        self.fc6, self.fc7, self.fc8 = nn.Linear(9216, 4096), nn.Linear(4096, 4096), nn.Linear(4096, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores `[N, classes]` of images `[N, 3, 227, 227]`."""
        x = self.norm(self.pool(self.conv1(images).relu()))
        x = self.norm(self.pool(self.conv2(x).relu()))
        x = self.conv4(self.conv3(x).relu()).relu()
        x = self.pool(self.conv5(x).relu()).flatten(1)
        x = self.dropout(self.fc6(x).relu())
        return self.fc8(self.dropout(self.fc7(x).relu()))


register("caffenet", BuiltIn(CaffeNet, None, Preprocessing(size=(227, 227), resize=256)))
