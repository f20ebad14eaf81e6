"""How far the answers of a network move: the Kullback-Leibler divergence from the original's, in nats an image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cnncompress.errors import CompressError, DataError
from cnncompress.network.inputs import input_dtype, read_batch
from cnncompress.network.meaning import meaning_of
from cnncompress.network.parts import parts
from cnncompress.network.run import forward, inference

MACS_PER_CHECK = 5e10  # multiply-accumulates of one check of the answers
IMAGES_PER_CHECK = (4, 256)  # images for such a check, at least and at most


class Answers:
    """The answers of `model` to `images` [n, c, H, W], which those of other networks are compared to."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.images = images
        self.meaning = meaning_of(model, images[:1].to(input_dtype(model)))
        self.original = self.answers_of(model)

    def answers_of(self, model: nn.Module) -> Tensor:
        """The answers of a network to the images, [n, ...]."""
        dtype = input_dtype(model)
        with inference(model):
            return torch.cat([forward(model, part.to(dtype)).double() for part in parts(self.images)])

    def divergences(self, model: nn.Module) -> Tensor:
        """The divergence of the network's answers from the original's (`Meaning.divergences`), [n] in nats an image."""
        return self.meaning.divergences(self.original, self.answers_of(model))

    def divergence(self, model: nn.Module) -> float:
        """The mean of `divergences`, never below 0; CompressError where an answer is not finite."""
        value = float(self.divergences(model).mean().clamp_min(0))
        if value != value:
            raise CompressError("the network's outputs are not finite; check the images and the weights")
        return value


@dataclass(frozen=True)
class Agreement:
    """How near the answers of two networks are on `images` images: percent of the same top class, and nats an image.

    `same` is None where the answers tell no classes apart.
    """

    same: float | None
    divergence: float
    images: int


def agreement(model: nn.Module, small: nn.Module, loader: Iterable[Any]) -> Agreement:
    """The agreement of `small` with the network it was made of, on batches as `inputs.read_batch` takes them.

    Both are on the CPU. DataError where there are no images, CompressError where an answer is not finite.
    """
    same, images, classes = 0, 0, True
    total = 0.0
    for batch in loader:
        part, _ = read_batch(batch, labels=False)
        if len(part):
            theirs = Answers(model, part)
            ours = theirs.answers_of(small)
            total += float(theirs.meaning.divergences(theirs.original, ours).sum())
            classes = theirs.meaning.classes
            if classes:
                same += int((ours.argmax(1) == theirs.original.argmax(1)).sum())
            images += len(part)
    if not images:
        raise DataError("no images to compare the answers on; check the data set")
    if total != total:
        raise CompressError("the network's outputs are not finite; check the images and the weights")
    return Agreement(100 * same / images if classes else None, max(0.0, total) / images, images)


def to_check(images: Tensor, macs: int) -> Tensor:
    """A selection of images [n, 3, H, W], spread evenly, to check a network of `macs` an image on."""
    count = int(min(max(MACS_PER_CHECK / max(1, macs), IMAGES_PER_CHECK[0]), IMAGES_PER_CHECK[1], len(images)))
    return images[torch.linspace(0, len(images) - 1, count).long().unique()]
