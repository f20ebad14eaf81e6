"""Checks of a network before it is compressed, and of a compressed one before it is written."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from cnncompress.errors import CompressError
from cnncompress.network.meaning import NOTES, meaning_of
from cnncompress.network.run import inference, run, same_outputs

NOT_REPEATABLE = (
    "two forward passes on the same input differ: the network is random or keeps a state (as F.dropout does without "
    "training=self.training); its accuracy and all comparisons with it are noisy"
)
DEPENDS_ON_BATCH = (
    "the answer to an image depends on the other images of its batch (as with batch normalisation without running "
    "statistics, or dynamic quantisation); accuracies hold only for this batch size and this order of the images"
)
ONE_IMAGE_ONLY = "the network takes one image at a time"
NOT_FINITE = "its outputs on a random input are not finite (NaN or infinite)"


def check_weights(model: nn.Module) -> None:
    """CompressError, with its name, for the first weight that is sparse or not finite."""
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor) and value.layout is not torch.strided:
            raise CompressError(f"{name} is a sparse tensor, which a run cannot hold: give a dense one, of to_dense()")
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not parameter.is_meta and not bool(torch.isfinite(parameter).all()):
            raise CompressError(f"{name} holds NaN or infinite values: give a network with finite weights")


def remarks_on(model: nn.Module, example: Tensor) -> list[str]:
    """Remarks for the user on a network, from forward passes on `example` [n, c, h, w] of at least two images.

    CompressError where it fails on a single image.
    """
    one, two = example[:1], example[:2]
    with inference(model):
        first, second = run(model, one), run(model, one)
        try:
            both = run(model, two)
        except CompressError:
            both = None
    remarks = [NOT_FINITE] if not _finite(first) else []
    if not same_outputs(first, second):
        return [*remarks, NOT_REPEATABLE]
    remarks += _read_as(model, one)
    if both is None:
        return [*remarks, ONE_IMAGE_ONLY]
    return [*remarks, DEPENDS_ON_BATCH] if _depend(first, both) else remarks


def _read_as(model: nn.Module, image: Tensor) -> list[str]:
    """How the outputs are read, where that is not as the logits of classes."""
    try:
        kind = meaning_of(model, image).kind
    except CompressError as error:  # nothing that could be read: said where it is needed
        return [f"no accuracy is known: {error}"]
    return [NOTES[kind]] if kind in NOTES else []


def _depend(alone: Any, together: Any) -> bool:
    """Whether the first answer of a batch is another than the answer to the image alone."""
    ones, others = tree_leaves(alone), tree_leaves(together)
    if len(ones) != len(others):
        return False  # an answer of another structure, such as a list of detections
    pairs = [
        (a, b)
        for a, b in zip(ones, others, strict=True)
        if isinstance(a, Tensor) and isinstance(b, Tensor) and a.dim() and b.dim() and a.shape[1:] == b.shape[1:]
    ]
    return not all(same_outputs(a, b[:1]) for a, b in pairs if len(a) == 1 and len(b) == 2)


def check_finished(model: nn.Module, small: nn.Module, example: Tensor) -> None:
    """CompressError where a compressed network does not run on `example`, or its outputs alone are not finite."""
    with inference(model):
        expected = run(model, example)
    try:
        with inference(small):
            outputs = run(small, example)
    except CompressError as error:
        raise CompressError(f"the compressed network does not run, nothing was written: {error}") from error
    if _finite(expected) and not _finite(outputs):
        raise CompressError("the compressed network's outputs are not finite (NaN or infinite); nothing was written")


def _finite(output: Any) -> bool:
    return all(bool(torch.isfinite(x).all()) for x in tree_leaves(output) if isinstance(x, Tensor) and not x.is_meta)
