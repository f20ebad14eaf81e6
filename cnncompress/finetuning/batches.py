"""The training images of each step: an order for every epoch, and the part of each process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cnncompress.data.loading import Loader, collate, make_loader
from cnncompress.data.sample import evenly
from cnncompress.errors import DataError, UsageError
from cnncompress.finetuning.optimization import mixed_seed
from cnncompress.finetuning.settings import FinetuneSettings
from cnncompress.network.evaluate import check_labels
from cnncompress.network.inputs import read_batch
from cnncompress.text import first_line


@dataclass(frozen=True)
class Process:
    """One of several processes that train together."""

    rank: int
    processes: int
    device: torch.device


class Batch(NamedTuple):
    """This process's part of a batch: images [n, c, H, W], and labels [n] unless they are left out.

    The images are blank where what the frozen layers give for them is `given`; the teacher's `logits` are there then
    too, if there is one.
    """

    images: Tensor
    labels: Tensor | None = None
    given: Tensor | None = None
    logits: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        moved: list[Any] = [None if x is None else x.to(device, non_blocking=True) for x in self]
        return Batch(*moved)

    def parts(self, count: int) -> list[Batch]:
        """The batch in at most so many parts."""
        columns: list[Any] = [repeat(None) if x is None else x.chunk(count) for x in self]
        return [Batch(*row) for row in zip(*columns, strict=False)]


class Known(Protocol):
    """What is known of training images, so that they need not be read."""

    def batch(self, indices: Sequence[int]) -> Batch:
        """The images at these indices of their set."""


class _Chosen(Dataset[Any]):
    """The items of a set at `indices`; DataError that names the one that cannot be had."""

    def __init__(self, dataset: Dataset[Any], indices: Sequence[int]) -> None:
        self.dataset, self.indices = dataset, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> Any:
        try:
            return self.dataset[self.indices[i]]
        except Exception as error:  # whatever somebody else's code raises; its type may not travel between processes
            what = "" if isinstance(error, DataError) else f"training image {self.indices[i]} cannot be read: "
            raise DataError(f"{what}{first_line(error)}") from error


class Batches:
    """The batches of a training as one process sees them.

    `size` is the number of images in a batch of all processes, `steps` the number of batches in an epoch; an incomplete
    last batch is left out. With a `memory`, images come from there. Raises DataError without images, UsageError where
    the processes cannot share a batch evenly.
    """

    def __init__(self, dataset: Dataset[Any], settings: FinetuneSettings, process: Process) -> None:
        self.dataset, self.settings, self.process = dataset, settings, process
        self.memory: Known | None = None
        self.images = len(dataset)  # type: ignore[arg-type]
        an_epoch = min(self.images, settings.images_per_epoch or self.images)
        self.size = min(settings.batch_size, an_epoch)
        self._check_sizes()
        self.steps = an_epoch // self.size

    def _check_sizes(self) -> None:
        processes = self.process.processes
        if not self.images:
            raise DataError("no images to train on; check the data set")
        if self.settings.batch_size % processes:
            raise UsageError(
                f"batch size {self.settings.batch_size} cannot be split evenly over {processes} processes; "
                f"give --batch-size a multiple of {processes}"
            )
        if self.size < processes:
            raise UsageError(f"{self.images} training images are too few for {processes} processes; start fewer")

    def _parts(self, epoch: int) -> Tensor:
        """The indices of this process's part of each batch of an epoch, [steps, part]."""
        generator = torch.Generator().manual_seed(mixed_seed(self.settings.seed, epoch))
        order = torch.randperm(self.images, generator=generator)[: self.steps * self.size]
        return order.view(self.steps, self.size)[:, self.process.rank :: self.process.processes]

    def of_epoch(self, epoch: int, done: int) -> Iterator[Any]:
        """This process's part of the batches of an epoch, after the first `done` of them."""
        mine = self._parts(epoch)[done:]
        if self.memory is not None:
            return map(self.memory.batch, mine.tolist())
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
        return iter(self.once(mine.flatten().tolist()))

    def once(self, indices: Sequence[int]) -> DataLoader[Any]:
        """The images at these indices, as many at once as this process has in a batch."""
        part = self.size // self.process.processes
        pin = self.process.device.type == "cuda"
        chosen = _Chosen(self.dataset, indices)
        return DataLoader(chosen, part, num_workers=self.settings.workers, pin_memory=pin, collate_fn=collate)

    def used(self, epochs_before: int) -> list[int]:
        """The indices of the images that this process sees in a training after so many epochs, and in trials of it."""
        epochs = range(epochs_before + 1, epochs_before + 1 + self.settings.epochs)
        return torch.cat([self._parts(epoch) for epoch in (0, *epochs)]).unique().tolist()

    def others(self, images: Any, most: int) -> Loader:
        """This process's part of at most `most` batches of other images, spread evenly; as many in every process."""
        rank, processes = self.process.rank, self.process.processes
        chosen = evenly(len(images), most * self.size)
        each = len(chosen) // processes
        mine = chosen[rank * each : (rank + 1) * each] if each else chosen
        return make_loader(images, self.size // processes, workers=self.settings.workers, indices=mine)

    def read(self, batches: Iterator[Any], dtype: torch.dtype, classes: int) -> Batch:
        """The next batch, on the device; DataError for wrong labels.

        The labels are None where the settings leave them out.
        """
        try:
            batch = next(batches)
        except DataError as error:  # from a worker process, the message is a whole traceback
            raise DataError(str(error).strip().split("\n")[-1].rpartition("DataError: ")[-1]) from error
        return self.checked(batch, dtype, classes)

    def checked(self, batch: Any, dtype: torch.dtype, classes: int) -> Batch:
        """A batch as `read` gives it."""
        if isinstance(batch, Batch):
            return batch.to(self.process.device)
        device, labelled = self.process.device, not self.settings.unlabelled
        images, labels = read_batch(batch, dtype, labels=labelled)
        images = images.to(device, non_blocking=True)
        if not labelled:
            return Batch(images)
        if labels is None:
            raise DataError("the training images have no labels; items are (image, class index)")
        check_labels(labels, classes)
        return Batch(images, labels.to(device, non_blocking=True))
