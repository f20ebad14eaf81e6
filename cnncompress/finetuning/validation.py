"""The accuracy on the validation images, of which each process sees its share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cnncompress.data import make_loader
from cnncompress.finetuning.distillation import Teacher, tallied
from cnncompress.finetuning.settings import FinetuneSettings
from cnncompress.network.evaluate import Evaluation, NotFiniteError, summarise, with_answers
from cnncompress.network.parts import images_at_once
from cnncompress.network.processes import add_up, processes


def validated(
    network: nn.Module,
    images: Any,
    judge: Teacher | None,
    settings: FinetuneSettings,
    device: torch.device,
    example: Tensor | None = None,
) -> Evaluation:
    """The accuracy of a network on a set of images, or how near it is to a teacher that judges it.

    The network is on `device` already. It takes images as the `example` [1, c, h, w] a few at a time, as is fast there.
    All processes call this, and all get the same. The answers are those to the images that could be read, in the order
    of the set; there are none of a teacher's judgement. NotFiniteError in all of them where one sees such outputs.
    """
    rank, world = processes()
    mine = range(rank, len(images), world)
    size = max(1, settings.batch_size // world)
    if example is not None:
        size = min(size, images_at_once(example[0, 0].numel(), device))
    loader = make_loader(images, size, workers=settings.workers, indices=mine)
    kept: list[Tensor] = []
    try:
        sums = tallied(network, loader, judge, device, progress=rank == 0, kept=kept)
    except NotFiniteError:
        sums = torch.full((4,), torch.nan, dtype=torch.float64, device=device)
    sums = add_up(sums)
    if sums.isnan().any():
        raise NotFiniteError
    result = summarise(sums)
    if judge is not None:
        return result
    marks = torch.zeros(len(images), 2, dtype=torch.int32)  # 0 for an image that nobody could read
    if kept:
        marks[[mine[i] for i in loader.read]] = 1 + torch.cat(kept).int()
    marks = add_up(marks)
    return with_answers(result, marks[marks[:, 0] > 0].long() - 1)
