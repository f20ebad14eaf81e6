"""The training images of each step: an order for every epoch, and the part of each process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cnncompress.data.loading import collate, make_loader
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
    last batch is left out. Raises DataError without images, UsageError where the processes cannot share a batch evenly.
    """

    def __init__(self, dataset: Dataset[Any], settings: FinetuneSettings, process: Process) -> None:
        self.dataset, self.settings, self.process = dataset, settings, process
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
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
        mine = self._parts(epoch)[done:]
        chosen = _Chosen(self.dataset, mine.flatten().tolist())
        pin = self.process.device.type == "cuda"
        loader = DataLoader(
            chosen, mine.shape[1], num_workers=self.settings.workers, pin_memory=pin, collate_fn=collate
        )
        return iter(loader)

    def as_evaluated(self, epoch: int, done: int, count: int) -> Iterator[Any]:
        """As `of_epoch`, `count` batches of the images as they are evaluated, where the set has those as `plain`.

        Images that cannot be read are left out.
        """
        mine = self._parts(epoch)[done : done + count]
        dataset = getattr(self.dataset, "plain", self.dataset)
        return iter(make_loader(dataset, mine.shape[1], workers=self.settings.workers, indices=mine.flatten().tolist()))

    def read(self, batches: Iterator[Any], dtype: torch.dtype, classes: int) -> tuple[Tensor, Tensor | None]:
        """The images [n, c, H, W] and labels [n] of the next batch, on the device; DataError for wrong labels.

        The labels are None where the settings leave them out.
        """
        try:
            batch = next(batches)
        except DataError as error:  # from a worker process, the message is a whole traceback
            raise DataError(str(error).strip().split("\n")[-1].rpartition("DataError: ")[-1]) from error
        return self.checked(batch, dtype, classes)

    def checked(self, batch: Any, dtype: torch.dtype, classes: int) -> tuple[Tensor, Tensor | None]:
        """A batch as `read` gives it."""
        device, labelled = self.process.device, not self.settings.unlabelled
        images, labels = read_batch(batch, dtype, labels=labelled)
        images = images.to(device, non_blocking=True)
        if not labelled:
            return images, None
        if labels is None:
            raise DataError("the training images have no labels; items are (image, class index)")
        check_labels(labels, classes)
        return images, labels.to(device, non_blocking=True)
