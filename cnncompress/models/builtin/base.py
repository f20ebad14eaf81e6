"""The type of a built-in network, and the built-in ones by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from cnncompress.network.preprocessing import Preprocessing


@dataclass(frozen=True)
class BuiltIn:
    """A network that ships with the package: how it is built, its weights, its images and the data set of these.

    `build` takes `num_classes` and gives random weights; `weights` is a safetensors file, whose kernels may be of a
    narrower dtype than the network's, or None: a network to count and to train. One with weights is right for at least
    `accuracy` percent of the test images of `data`.
    """

    build: Callable[..., nn.Module]
    weights: Path | None
    preprocessing: Preprocessing
    data: str = ""
    accuracy: float = 0.0


BUILTIN: dict[str, BuiltIn] = {}


def register(name: str, network: BuiltIn) -> None:
    """Make a built-in network known by its name."""
    BUILTIN[name] = network


def convolutions(widths: list[list[int]]) -> nn.Sequential:
    """Stages of 3×3 convolutions of these widths, each with batch normalisation and ReLU, on images [N, 3, H, W].

    A max-pooling halves height and width after every stage.
    """
    layers: list[nn.Module] = []
    channels = 3
    for stage in widths:
        for width in stage:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)
