"""Some images of a set, and a hash of them: file names and sizes alone do not tell two data sets apart."""

from __future__ import annotations

import hashlib

import numpy as np

from cnncompress.data.loading import Images, UnreadableError

IMAGES_SAMPLED = 32


def content_of(images: Images) -> str:
    """Sixteen hexadecimal digits over up to 32 images, spread evenly, with their labels."""
    digest = hashlib.sha256()
    for index in range(0, len(images), max(1, len(images) // IMAGES_SAMPLED)):
        try:
            image = images.image(index)
        except UnreadableError:
            continue
        digest.update(f"{image.size} {images.label(index)}".encode())
        digest.update(image.tobytes())
    return digest.hexdigest()[:16]


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below `count`, spread evenly, the first and the last included."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).astype(int)).tolist()
