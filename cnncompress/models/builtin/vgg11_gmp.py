"""VGG-11 with a global max pooling, untrained: the baseline of Ioannou et al. 2016, low-rank filters."""

from __future__ import annotations

import torch
from torch import nn

from cnncompress.models.builtin.base import BuiltIn, register
from cnncompress.network.preprocessing import Preprocessing


class VGG11GMP(nn.Module):
    """VGG-11 whose maps are pooled to one value a channel before the fully connected layers.

    32,200,040 parameters and 7,508,426,752 MACs on 3×224×224 images; the paper prints 7,508,438,696, which has one
    addition for each of the 11,944 biases in it. `last_channels` is the width of the last stage, conv5: 512, or 1,024
    in the paper's gmp-lr-2x and gmp-lr-join-wfull.
    """

    def __init__(self, num_classes: int = 1000, last_channels: int = 512) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for i, stage in enumerate(((64,), (128,), (256, 256), (512, 512), (last_channels, last_channels))):
            layers += [nn.MaxPool2d(2)] if i else []
            for width in stage:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
        self.features = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.classifier = nn.Sequential(
            nn.Linear(last_channels, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(4096, num_classes),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores `[N, classes]` of images `[N, 3, 224, 224]`."""
        return self.classifier(self.features(images))


register("vgg11_gmp", BuiltIn(VGG11GMP, None, Preprocessing()))
