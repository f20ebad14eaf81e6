"""The network of Zeiler and Fergus 2013, untrained: Denton et al. 2014 decompose its first two convolutions."""

from __future__ import annotations

import torch
from torch import nn

from cnncompress.models.builtin.base import BuiltIn, register
from cnncompress.network.preprocessing import Preprocessing


class ZeilerFergus(nn.Module):
    """Five convolutions for 3×224×224 images: 7×7 to 110×110, 5×5 to 26×26, three 3×3 at 13×13.

    Denton et al. have one convolution fewer and 18,432 inputs of the first fully connected layer; they do not say what
    else is above the second.
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 96, 7, stride=2, padding=1), nn.ReLU(inplace=True), pool, nn.LocalResponseNorm(5)),
            *(nn.Conv2d(96, 256, 5, stride=2), nn.ReLU(inplace=True), pool, nn.LocalResponseNorm(5)),
            *(nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(inplace=True)),
            *(nn.Conv2d(384, 384, 3, padding=1), nn.ReLU(inplace=True)),
            *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
        )
        self.classifier = nn.Sequential(
            *(nn.Flatten(), nn.Linear(9216, 4096), nn.ReLU(inplace=True), nn.Dropout()),
            *(nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout()),
            nn.Linear(4096, num_classes),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores `[N, classes]` of images `[N, 3, 224, 224]`."""
        return self.classifier(self.features(images))


register("zeiler_fergus", BuiltIn(ZeilerFergus, None, Preprocessing()))
