"""Accuracy of a network on labelled images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnncompress.errors import CompressError, DataError
from cnncompress.network.compressed import Compressed, network_of
from cnncompress.network.device import resolve_device
from cnncompress.network.inputs import input_dtype, read_batch
from cnncompress.network.run import forward, inference
from cnncompress.terminal.console import bar

Batches = Iterable[Any]
ONE_NUMBER = (
    "the network gives one number an image, not scores of classes, so there is no accuracy; where it is the logit x of "
    "the second of two classes, return torch.stack([torch.zeros_like(x), x], 1), x as [images], from its forward pass"
)


class NotFiniteError(CompressError):
    """Outputs of a network that are no numbers."""

    def __init__(self) -> None:
        super().__init__("the network's outputs are not finite; check the images and the weights")


@dataclass(frozen=True)
class Evaluation:
    """Accuracies in percent and the mean cross entropy (nats) over `images` images.

    With fewer than five classes, `top5` counts the label among all of them. `hits` [images] tells which images the
    first guess was right on, and `answers` [images, 2] are their labels and first guesses, where these were kept.
    """

    top1: float
    top5: float
    loss: float
    images: int
    hits: Tensor | None = field(default=None, repr=False, compare=False)
    answers: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def numbers(self) -> dict[str, float]:
        """Accuracies, loss and the number of images, as plain values."""
        return {"top1": self.top1, "top5": self.top5, "loss": self.loss, "images": self.images}


def paired_error(one: Evaluation | None, other: Evaluation | None) -> float | None:
    """The standard error, in points, of the difference of top-1 of two networks on the same images, or None."""
    if one is None or other is None or one.hits is None or other.hits is None or one.images != other.images:
        return None
    change = other.hits.double() - one.hits.double()
    return 100 * float(change.var(correction=0) / len(change)) ** 0.5


def check_labels(labels: Tensor, classes: int) -> None:
    """DataError unless all labels [n] are indices of the network's `classes` outputs."""
    low, high = (int(v) for v in labels.aminmax())
    if low < 0 or high >= classes:
        wrong = low if low < 0 else high
        raise DataError(f"class index {wrong} is not one of the network's {classes} outputs (0 to {classes - 1})")


def tally(
    model: nn.Module,
    batches: Batches,
    device: torch.device,
    *,
    progress: bool = True,
    kept: list[Tensor] | None = None,
) -> Tensor:
    """Sums over batches as `inputs.read_batch` takes them: float64 [top-1 hits, top-5 hits, loss, images].

    The network is already on `device`; it is in eval mode meanwhile. Sums of parts of a data set may be added.
    `kept` gets the labels and first guesses [n, 2] of each batch.
    DataError for batches without labels, NotFiniteError for outputs that are no numbers.
    """
    dtype = input_dtype(model)
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    with inference(model):
        for batch in bar(batches, progress=progress, desc="evaluate", unit="batch", leave=False):
            images, labels = read_batch(batch, dtype)
            if not len(images):
                continue
            if labels is None:
                raise DataError("the images have no labels, so there is no accuracy; give batches (images, labels)")
            output = forward(model, images.to(device, non_blocking=True))
            if output.numel() == len(output):
                raise CompressError(ONE_NUMBER)
            if output.dim() != 2:
                raise CompressError(f"the network returns logits of {output.dim()} dimensions, not [images, classes]")
            if output.isnan().any():
                raise NotFiniteError
            check_labels(labels, output.shape[1])
            labels, scores = labels.to(device, non_blocking=True), output.double()
            guesses = scores.topk(min(5, scores.shape[1])).indices
            hits = guesses == labels[:, None]
            if kept is not None:
                kept.append(torch.stack([labels, guesses[:, 0]], 1).cpu())
            loss = F.cross_entropy(scores, labels, reduction="sum")
            sums += torch.stack([hits[:, 0].sum(), hits.sum(), loss, loss.new_tensor(len(labels))])
    return sums


def are_right(answers: Tensor) -> Tensor:
    """Whether each first guess is right, [n], of labels and first guesses [n, 2]."""
    return answers[:, 0] == answers[:, 1]


def with_answers(result: Evaluation, answers: Tensor) -> Evaluation:
    """The evaluation with its labels and first guesses [images, 2], and with the hits among them."""
    return replace(result, hits=are_right(answers), answers=answers)


def summarise(sums: Tensor) -> Evaluation:
    """The means of `tally`'s sums; DataError where there were no images."""
    top1, top5, loss, images = sums.tolist()
    if not images:
        raise DataError("no images to evaluate on; check the data set")
    return Evaluation(100 * top1 / images, 100 * top5 / images, loss / images, int(images))


def evaluate(
    model: nn.Module | Compressed, loader: Any, device: str | torch.device = "cpu", progress: bool = True
) -> Evaluation:
    """Top-1, top-5 and loss of `model` on the batches of `loader`, with labels, as `inputs.read_batch` takes them.

    Moves the network to `device` and leaves it there. Raises DataError for an empty loader and for labels that the
    network has no output for.
    """
    model, device = network_of(model), resolve_device(device)
    kept: list[Tensor] = []
    result = summarise(tally(model.to(device), loader, device, progress=progress, kept=kept))
    return with_answers(result, torch.cat(kept))
