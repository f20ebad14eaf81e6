"""Small pictures of images whose answer changed."""

from __future__ import annotations

import io

from PIL import Image

from cnncompress.data import Data
from cnncompress.data.sample import evenly
from cnncompress.network.evaluate import Evaluation
from cnncompress.pipeline.classes import Answered, class_names, number_of
from cnncompress.reporting.examples import Example

SIDE = 96  # pixels of a picture
QUALITY = 80  # of JPEG


def changed_images(
    network: str, before: Evaluation | None, after: Evaluation | None, data: Data | None, most: int
) -> list[Example]:
    """At most so many of the images of `data` that one of both networks alone is right on.

    Those that are wrong now come first and are at least half, where there are as many. None where it is not known which
    images the answers are to.
    """
    answered = Answered.of(before, after)
    if answered is None or data is None:
        return []
    images = data.val
    read = [i for i in range(len(images)) if images.name(i) not in images.skipped]
    if len(read) != len(answered.labels):
        return []
    was, now = answered.before == answered.labels, answered.after == answered.labels
    lost, gained = (mask.nonzero()[:, 0].tolist() for mask in (was & ~now, now & ~was))
    first = min(len(lost), max(most - len(gained), (most + 1) // 2))
    chosen = [lost[i] for i in evenly(len(lost), first)] + [gained[i] for i in evenly(len(gained), most - first)]
    names = class_names(images)
    found = []
    for place in chosen:
        label, one, other = (names.get(value, number_of(value)) for value in answered.at(place))
        found.append(Example(network, label, one, other, _small(images.image(read[place]))))
    return found


def _small(image: Image.Image) -> bytes:
    """A JPEG file of the image, at most `SIDE` pixels wide and high."""
    small, file = image.convert("RGB"), io.BytesIO()
    small.thumbnail((SIDE, SIDE))
    small.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
