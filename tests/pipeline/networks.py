"""Small networks in a file, and images in folders, for the tests of whole commands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

FACTORY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=2, width=8):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(self.two(self.one(x).relu()).relu().mean((2, 3)))

def build(num_classes=2, width=8):
    return Net(num_classes, width)

def pointwise():
    return nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""


def write_factory(folder: Path) -> str:
    """A file with a network whose weights are drawn anew each time; its name as MODEL."""
    Path(folder, "net.py").write_text(FACTORY)
    return "net.py:build"


def write_images(folder: Path, classes: int = 2, images: int = 8) -> str:
    """A flat folder of class folders with noise of 8×8 pixels, a different mean in each."""
    random = np.random.RandomState(0)
    for label in range(classes):
        place = Path(folder, f"class{label}")
        place.mkdir(parents=True)
        for i in range(images):
            pixels = random.randint(0, 128, (8, 8, 3)) + 127 * label // max(1, classes - 1)
            Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i}.png")
    return str(folder)
