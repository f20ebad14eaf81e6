"""The type of a data set that needs no files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True)
class Drawn:
    """Images that are drawn when asked for: image number i, the labels of all, and the numbers in each part.

    The parts are `train`, `val` and `test`.
    """

    draw: Callable[[int], Image.Image]
    labels: Callable[[], list[int]]
    parts: Callable[[], dict[str, list[int]]]
