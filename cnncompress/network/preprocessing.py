"""Preprocessing of images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cnncompress.chains.spec import Pair
from cnncompress.errors import UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of an image: short side to `resize` pixels, centre crop, normalisation.

    `resize` None scales the whole image to `size` (height, width) instead of cropping. Pixels are in [0, 1] when
    `mean` and `std` are applied.
    """

    size: Pair = (224, 224)
    resize: int | None = 256
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"

    @property
    def channels(self) -> int:
        """The channels of the images, each with its mean and deviation: 3, or 1 for greyscale."""
        return len(self.mean)

    def changed(
        self, size: Pair | None = None, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> Preprocessing:
        """With other numbers where they are given; a `size` scales whole images, a single number is for all channels.

        UsageError for numbers that are not one a channel, not finite, or not positive where they must be.
        """
        changes: dict[str, Any] = {}
        if size is not None:
            if min(size) < 1:
                raise UsageError(f"the input size must be at least 1 pixel, not {size[0]}x{size[1]}")
            changes |= {"size": size, "resize": None}
        for name, values in (("mean", mean), ("std", std)):
            if values is None:
                continue
            numbers = tuple(float(v) for v in values)
            if not all(math.isfinite(v) for v in numbers) or (name == "std" and min(numbers, default=1) <= 0):
                raise UsageError(f"--{name} must be finite numbers{', above 0' * (name == 'std')}, not {list(values)}")
            if len(numbers) not in (1, self.channels):
                count = f"{self.channels} channel{'s' * (self.channels != 1)}"
                raise UsageError(f"--{name} has {len(numbers)} numbers for a network of {count}; give one, or one each")
            changes[name] = numbers * self.channels if len(numbers) == 1 else numbers
        return dataclasses.replace(self, **changes)

    def for_channels(self, channels: int) -> Preprocessing:
        """For images of so many channels: where their number changes, each gets the average mean and deviation."""
        if channels == self.channels:
            return self
        mean, std = (sum(values) / len(values) for values in (self.mean, self.std))
        return dataclasses.replace(self, mean=(mean,) * channels, std=(std,) * channels)
