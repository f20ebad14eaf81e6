"""A small VGG (with batch normalisation) for the handwritten digits of scikit-learn; made for tests, as it is quick."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from cnncompress.models.builtin.base import BuiltIn, convolutions, register
from cnncompress.network.preprocessing import Preprocessing


class DigitsVGG(nn.Module):
    """Six 3×3 convolutions and two wide fully connected layers for 3×32×32 images, in the manner of VGG.

    Batch normalisation follows every convolution, dropout every wide layer (Simonyan and Zisserman 2015).
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = convolutions([[16, 16], [32, 32], [64, 64]])
        self.classifier = nn.Sequential(
            nn.Linear(64 * 4 * 4, 256),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(256, 256),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(256, num_classes),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores `[N, classes]` of images `[N, 3, 32, 32]`."""
        return self.classifier(self.features(images).flatten(1))


register(
    "digits_vgg",
    BuiltIn(
        DigitsVGG,
        Path(__file__).with_name("digits_vgg.safetensors"),
        Preprocessing(size=(32, 32), resize=None, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
        data="digits",
        accuracy=97.0,
    ),
)
