"""Handwritten digits on photographs: those that ship inside scikit-learn, 1,797 digits and two pictures.

Every image shows one whole digit, enlarged, turned, slanted and coloured at random, on a crop of a photograph, among
pieces of other digits, under noise. No digit, no piece of one and no part of a photograph is in two of the parts.
"""

from __future__ import annotations

import threading
from functools import cache, lru_cache

import numpy as np
from PIL import Image

from cnncompress.data.digits import digit_splits
from cnncompress.data.drawn import Drawn

SIZE = 40
DRAWINGS = {"train": 7, "val": 2, "test": 12}  # images of each digit, by its part
MOST = max(DRAWINGS.values())  # image number MOST·digit + drawing
PIECES = 2  # of other digits, around the whole one
COLUMNS = {"train": (0.0, 0.6), "val": (0.6, 0.8), "test": (0.8, 1.0)}  # of the photographs, as shares of their width
CROPS = (40, 75)  # pixels of the photographs that a side of an image shows
MARGIN = 2  # blank pixels around a digit of 8×8, so that its edges are as soft as the rest
HEIGHTS = (17, 28)  # pixels of a digit
CONTRAST = 60  # least difference in brightness between a digit and the middle of its background, of 255
NOISE = 12.0  # largest standard deviation
_OF_THREAD = threading.local()


def draw_photodigit(digit: int, drawing: int) -> Image.Image:
    """Drawing number `drawing` of digit number `digit`, 40×40 pixels in colour; it follows from the two numbers.

    The data set has the first drawings of every digit, `DRAWINGS` of them.
    """
    rng = _generator()
    rng.seed([digit, drawing])
    part, others = _parts()[digit]
    image, ink = _background(rng, part), _digits()[0]
    for other in rng.choice(others, PIECES):
        mask = _placed(rng, _piece(rng, ink[other]), rng.uniform(3, SIZE - 3, 2))
        image = _painted(rng, image, mask)
    image = _painted(rng, image, _placed(rng, ink[digit], rng.uniform(15, SIZE - 15, 2)))
    image = image + rng.uniform(0, NOISE) * rng.standard_normal(image.shape)
    return Image.fromarray(np.clip(np.round(image), 0, 255).astype(np.uint8))


def _generator() -> np.random.RandomState:
    """The thread's own, of the one kind in NumPy whose stream is frozen; making one takes as long as half a drawing."""
    if not hasattr(_OF_THREAD, "generator"):
        _OF_THREAD.generator = np.random.RandomState()
    return _OF_THREAD.generator


@lru_cache(maxsize=1)
def _digits() -> tuple[np.ndarray, list[int]]:
    """The digits [N, 8, 8], 0 where there is no ink and 1 where there is most, and their labels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images / 16, digits.target.tolist()


@lru_cache(maxsize=1)
def _photographs() -> list[np.ndarray]:
    from sklearn.datasets import load_sample_images

    return list(load_sample_images().images)


@lru_cache(maxsize=1)
def _parts() -> dict[int, tuple[str, np.ndarray]]:
    """By digit, the part that it belongs to and all digits of that part."""
    parts = {part: np.array(members) for part, members in digit_splits().items()}
    return {digit: (part, members) for part, members in parts.items() for digit in members.tolist()}


def _background(rng: np.random.RandomState, part: str) -> np.ndarray:
    """A square of a photograph, from the columns of its part, as [40, 40, 3] of 0 to 255."""
    photograph = _photographs()[rng.randint(2)]
    height, width = photograph.shape[:2]
    first, end = (round(share * width) for share in COLUMNS[part])
    side = rng.randint(*CROPS)
    top, left = rng.randint(height - side + 1), rng.randint(first, end - side + 1)
    crop = Image.fromarray(photograph[top : top + side, left : left + side])
    values = np.asarray(crop.resize((SIZE, SIZE), Image.Resampling.BILINEAR), dtype=np.float32)
    return values[:, ::-1] if rng.randint(2) else values


def _piece(rng: np.random.RandomState, ink: np.ndarray) -> np.ndarray:
    """A quarter of a digit, the rest of which is blank."""
    piece, (top, left) = np.zeros_like(ink), rng.randint(0, 5, 2)
    piece[top : top + 4, left : left + 4] = ink[top : top + 4, left : left + 4]
    return piece


def _placed(rng: np.random.RandomState, ink: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Ink by pixel [40, 40, 1]: 8×8 ink enlarged, turned and slanted around `centre` (row, column)."""
    scale = 8 / rng.uniform(*HEIGHTS)
    angle, slant = rng.uniform(-0.35, 0.35), rng.uniform(-0.25, 0.25)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    back = scale * np.array([[1, slant], [0, 1]]) @ turn  # from pixels (x, y) to those of the ink
    shift = 4 + MARGIN - back @ centre[::-1]
    numbers = (*back[0], shift[0], *back[1], shift[1])
    grey = np.zeros((8 + 2 * MARGIN, 8 + 2 * MARGIN), np.uint8)
    grey[MARGIN:-MARGIN, MARGIN:-MARGIN] = np.round(255 * ink)
    drawn = Image.fromarray(grey).transform((SIZE, SIZE), Image.Transform.AFFINE, numbers, Image.Resampling.BICUBIC)
    return np.asarray(drawn, dtype=np.float32)[..., None] / 255


def _painted(rng: np.random.RandomState, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`image` [40, 40, 3] with ink of one colour, brighter or darker than what it covers, by `mask` [40, 40, 1]."""
    behind = float((image * mask).sum() / max(3 * mask.sum(), 1))
    room = [behind - CONTRAST, 255 - CONTRAST - behind]
    brighter = rng.uniform() * sum(max(r, 0) for r in room) > max(room[0], 0)
    low, high = (behind + CONTRAST, 255) if brighter else (0, behind - CONTRAST)
    colour = np.clip(rng.uniform(low, max(high, low)) + rng.uniform(-40, 40, 3), 0, 255)
    return image + mask * (colour.astype(np.float32) - image)


@cache  # 5 KB each: drawing one takes about as long as a small network does
def _draw(index: int) -> Image.Image:
    return draw_photodigit(*divmod(index, MOST))


def _labels() -> list[int]:
    return [label for label in _digits()[1] for _ in range(MOST)]


def _splits() -> dict[str, list[int]]:
    return {
        part: [MOST * digit + drawing for digit in digits for drawing in range(DRAWINGS[part])]
        for part, digits in digit_splits().items()
    }


PHOTODIGITS = Drawn(_draw, _labels, _splits)
