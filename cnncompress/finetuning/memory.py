"""What frozen layers give for the training images, kept where these are the same in every epoch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cnncompress.finetuning.batches import Batch, Batches
from cnncompress.finetuning.distillation import ATTENTION, Answers, learns
from cnncompress.finetuning.prefix import find_prefix
from cnncompress.finetuning.settings import FinetuneSettings
from cnncompress.finetuning.stepping import Stepper
from cnncompress.network.inputs import input_dtype
from cnncompress.network.memory_format import is_channels_last
from cnncompress.terminal.console import LOG, bar
from cnncompress.terminal.words import counted


class Memory:
    """What frozen layers give for the training images at `indices`, in `kind`, and the rest that a step needs of them.

    Images themselves are not kept: those of a batch are blank. `images` [n, c, H, W] and `given` [n, ...], what the
    layers give for them, show their shapes and types.
    """

    def __init__(self, indices: Sequence[int], images: Tensor, given: Tensor, kind: torch.dtype) -> None:
        self.rows = {index: row for row, index in enumerate(indices)}
        self.image, self.dtype = torch.zeros_like(images[:1], device="cpu"), given.dtype
        self.format = torch.channels_last if is_channels_last(given) else torch.contiguous_format
        self.given = torch.empty((len(indices), *given.shape[1:]), dtype=kind)
        self.labels: list[Tensor] = []
        self.logits: list[Tensor] = []
        self._taken = 0

    def take(self, given: Tensor, labels: Tensor | None, expected: Answers | None) -> bool:
        """Keep what belongs to the next images; False where `kind` is too small for it."""
        rows = slice(self._taken, self._taken + len(given))
        self.given[rows] = given.to("cpu", self.given.dtype)
        self._taken += len(given)
        self.labels += [] if labels is None else labels.cpu()
        self.logits += [] if expected is None else expected.logits.cpu()
        return bool(self.given[rows].isfinite().all())

    def batch(self, indices: Sequence[int]) -> Batch:
        """The images at these indices, as `Batches` gives those that were read."""
        rows = [self.rows[i] for i in indices]
        labels, logits = (torch.stack([x[row] for row in rows]) if x else None for x in (self.labels, self.logits))
        given = self.given[rows].to(self.dtype).contiguous(memory_format=self.format)
        return Batch(self.image.repeat(len(rows), 1, 1, 1), labels, given, logits)

    def __str__(self) -> str:
        return f"{self.given.nbytes / 2**20:.0f} MiB in {str(self.given.dtype).removeprefix('torch.')}"


def remember(stepper: Stepper, batches: Batches, names: Sequence[str], example: Tensor, epochs_before: int) -> None:
    """Have `batches` come with what the layers below the modules `names` give, where that can be kept.

    It is kept in the type that it is computed in, or in half precision where only that has the room. Images are read
    once, in batches of the size of a step, so that a training that is resumed keeps the same numbers.
    """
    settings = batches.settings
    prefix = find_prefix(stepper.model, names, example) if _repeats(batches, settings) else None
    if prefix is None:
        return
    wanted, memory = batches.used(epochs_before), None
    reader, dtype = batches.once(wanted), input_dtype(stepper.model)
    for read in bar(reader, progress=stepper.main, desc="frozen layers", unit="batch", leave=False):
        batch = batches.checked(read, dtype, stepper.classes)
        with torch.no_grad(), stepper.accelerator.autocast():
            given = prefix.output(batch.images)
        if memory is None and (kind := _kind(given, len(wanted), settings.cache_gib)):
            memory = Memory(wanted, batch.images, given, kind)
        if memory is None or not memory.take(given, batch.labels, stepper.expected(batch)):
            LOG.info(f"what frozen layers give is not kept: it does not fit {settings.cache_gib:g} GiB")
            return
    if memory is not None:
        LOG.info(f"what frozen layers give for {counted(len(wanted), 'image')} is kept: {memory}")
    stepper.plain.prefix, batches.memory = prefix, memory


def _repeats(batches: Batches, settings: FinetuneSettings) -> bool:
    """Whether images are the same each time that they are seen, are seen more than once, and are all a step needs."""
    often = settings.epochs > 1 or settings.lr is None
    plain = getattr(batches.dataset, "fixed", False) and not settings.mixup
    return bool(settings.cache_gib and often and plain and not learns(settings.distill, ATTENTION))


def _kind(given: Tensor, images: int, gib: float) -> torch.dtype | None:
    """The type in which the outputs [n, ...] for so many images have room in so many GiB; None where none has."""
    room = gib * 2**30 / (images * given[0].numel())
    return next((kind for kind in (given.dtype, torch.float16) if kind.itemsize <= room), None)
