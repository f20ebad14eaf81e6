"""How many images go through a network together."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

# Measured on two cores in single precision, milliseconds an image. At 224×224 with 1, 4, 16 and 64 images: resnet18 40,
# 33, 32 and 40; mobilenet_v2 29, 15, 29 and 43; resnet50 99, 75, 96 and, with 32, 118. A small VGG at 64×64 with 16, 64
# and 300 images: 3.1, 4.0 and 5.2. More leave the caches, and the system clears new memory for every output.
PIXELS_ON_CPU = 4 * 224 * 224
PIXELS_ON_GPU = 2**21


def images_at_once(pixels: int, device: torch.device) -> int:
    """How many images of so many pixels to give to a network together, at least one."""
    return max(1, (PIXELS_ON_CPU if device.type == "cpu" else PIXELS_ON_GPU) // max(1, pixels))


def parts(images: Tensor) -> Iterator[Tensor]:
    """Parts of images [n, c, h, w] that a network takes at once where they are, of about the same size."""
    most = images_at_once(images.shape[-2:].numel(), images.device)
    return iter(images.tensor_split(max(1, math.ceil(len(images) / most))))
