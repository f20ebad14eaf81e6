"""How far the answers of a network move: the Kullback-Leibler divergence from the original's, in nats an image."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnncompress.errors import CompressError
from cnncompress.factored import forward, inference
from cnncompress.inputs import input_dtype

PIXELS = 2**21  # go through a network at once
WORK = 5e10  # multiply-accumulates of one check of the answers
CHECKED = (4, 256)  # images for such a check, at least and at most


class Answers:
    """The answers of `model` to `images` [n, 3, H, W], which those of other networks are compared to."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.images = images
        self.original = self._log_probabilities(model)

    def _log_probabilities(self, model: nn.Module) -> Tensor:
        dtype = input_dtype(model)
        with inference(model):
            parts = [F.log_softmax(forward(model, part.to(dtype)).double(), 1) for part in batches(self.images)]
        return torch.cat(parts)

    def divergence(self, model: nn.Module) -> float:
        """Σ p log(p / q) for the original's p and the network's q, in nats, mean over the images; never below 0.

        CompressError where an answer is not finite.
        """
        answers = self._log_probabilities(model)
        value = float((self.original.exp() * (self.original - answers)).sum(1).mean().clamp_min(0))
        if value != value:
            raise CompressError("the network's outputs are not finite; check the images and the weights")
        return value


def to_check(images: Tensor, macs: int) -> Tensor:
    """Those of the images [n, 3, H, W], spread evenly, on which a network of `macs` an image is checked."""
    count = int(min(max(WORK / max(1, macs), CHECKED[0]), CHECKED[1], len(images)))
    return images[torch.linspace(0, len(images) - 1, count).long().unique()]


def batches(images: Tensor) -> Iterator[Tensor]:
    """Parts of images [n, 3, H, W] that a network takes at once."""
    return iter(images.split(max(1, PIXELS // max(1, images[0, 0].numel()))))
