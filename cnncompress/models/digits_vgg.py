"""The built-in network: a small VGG (with batch normalisation) for the handwritten digits of scikit-learn."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from cnncompress.spec import Preprocessing

WEIGHTS = Path(__file__).with_name("digits_vgg.safetensors")
PREPROCESSING = Preprocessing(size=(32, 32), resize=None, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


class DigitsVGG(nn.Module):
    """Six 3×3 convolutions and two wide fully connected layers for 3×32×32 images, in the manner of VGG.

    Batch normalisation follows every convolution, dropout every wide layer (Simonyan and Zisserman 2015).
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in (16, 32, 64):
            for _ in range(2):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(channels * 4 * 4, 256),
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
