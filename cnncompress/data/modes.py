"""Images of any kind of pixel as greyscale, RGB or RGBA of eight bits."""

from __future__ import annotations

import numpy as np
from PIL import Image

DEEP = {"I;16": 2**16 - 1, "I;16B": 2**16 - 1, "I;16L": 2**16 - 1, "I;16N": 2**16 - 1}  # the value of white


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """An image in Pillow's mode `L`, `RGB` or `RGBA`.

    16 bits become 8 by their share of white. Whole numbers of 32 bits are taken for those of 16, and floating-point
    numbers for shares of white. ValueError where they are not: the values alone do not say what is white.
    """
    if image.mode in DEEP or image.mode in ("I", "F"):
        image = Image.fromarray(_eight_bits(image))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == mode else image.convert(mode)


def _eight_bits(image: Image.Image) -> np.ndarray:
    """The pixels [h, w] of a greyscale image of more than 8 bits, as 8 bits."""
    pixels = np.asarray(image, dtype=np.float64)
    if not np.isfinite(pixels).all():
        raise ValueError("some of its pixels are not finite numbers")
    low, high = pixels.min(initial=0), pixels.max(initial=0)
    white = 1.0 if image.mode == "F" else float(DEEP.get(image.mode, 2**16 - 1))
    if low < 0 or high > white:
        raise ValueError(f"its pixels are from {low:g} to {high:g}, so it is unknown what is white; save it as 8 bits")
    return np.round(pixels * (255 / white)).astype(np.uint8)
