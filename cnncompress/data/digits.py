"""The handwritten digits that ship inside scikit-learn, drawn in colour."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

from cnncompress.data.drawn import Drawn

SCALE = 3
SIZE = 32
SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}


@lru_cache(maxsize=1)
def draw_digits() -> tuple[np.ndarray, np.ndarray]:
    """All 1,797 digits as images `[N, 32, 32, 3]` (uint8) and their labels `[N]`.

    Each 8×8 digit is drawn three times as large at a place of its own, in two colours of its own; every second one
    is dark on light. The places and colours depend on nothing but the index of the digit.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    ink = digits.images.repeat(SCALE, axis=1).repeat(SCALE, axis=2) / 16
    n, side = len(ink), ink.shape[1]
    rng = np.random.RandomState(0)  # the one NumPy generator whose stream is frozen
    light = rng.uniform(0.55, 1.0, (n, 1, 1, 3))
    dark = rng.uniform(0.0, 0.45, (n, 1, 1, 3))
    top, left = rng.randint(0, SIZE - side + 1, (2, n))
    alpha = np.zeros((n, SIZE, SIZE, 1))
    for i in range(n):
        alpha[i, top[i] : top[i] + side, left[i] : left[i] + side, 0] = ink[i]
    alpha[::2] = 1 - alpha[::2]
    images = dark + alpha * (light - dark)
    return np.round(images * 255).astype(np.uint8), digits.target.astype(np.int64)


def digit_splits() -> dict[str, list[int]]:
    """Indices of the fixed training, validation and test parts: 1,078, 359 and 360 digits."""
    n = len(draw_digits()[1])
    order = np.random.RandomState(1).permutation(n).tolist()
    first, second = int(n * SHARES["train"]), int(n * (SHARES["train"] + SHARES["val"]))
    return {"train": order[:first], "val": order[first:second], "test": order[second:]}


def _draw(index: int) -> Image.Image:
    return Image.fromarray(draw_digits()[0][index])


DIGITS = Drawn(_draw, lambda: draw_digits()[1].tolist(), digit_splits)
