"""A VGG for handwritten digits on photographs, wide enough that low-rank chains save time."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from cnncompress.models.builtin.base import BuiltIn, convolutions, register
from cnncompress.network.preprocessing import Preprocessing


class PhotodigitsVGG(nn.Module):
    """Seven 3×3 convolutions of 32 to 256 channels and a linear layer on their means, for 3×40×40 images.

    Batch normalisation follows every convolution.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = convolutions([[32], [64, 64], [128, 128], [256, 256]])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(256, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores `[N, classes]` of images `[N, 3, 40, 40]`."""
        return self.classifier(self.pool(self.features(images)).flatten(1))


register(
    "photodigits_vgg",
    BuiltIn(
        PhotodigitsVGG,
        Path(__file__).with_name("photodigits_vgg.safetensors"),
        Preprocessing(size=(40, 40), resize=None, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
        data="photodigits",
        accuracy=86.5,
    ),
)
