"""Images for training: changed at random, the same way in every process and after every interruption."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms import v2

from cnncompress.data.kept import Kept
from cnncompress.data.loading import Images, Item, UnreadableError, geometry, normalisation, report_skipped
from cnncompress.errors import DataError, UsageError, nearest
from cnncompress.network.preprocessing import Preprocessing

AUGMENTATIONS = ("standard", "trivial", "none")
KEPT_BYTES = 2**28  # of the decoded images of a set: one as small is decoded once for all epochs
SMALL = 64  # height and width up to which images are shifted, not cropped


def check_augmentation(name: str) -> None:
    """UsageError for a name that is not one of `AUGMENTATIONS`."""
    if name not in AUGMENTATIONS:
        raise UsageError(f"unknown augment '{name}'{nearest(name, AUGMENTATIONS)}; known: {', '.join(AUGMENTATIONS)}")


def _changes(preprocessing: Preprocessing, flip: bool) -> list[Callable[..., Any]]:
    """The steps of `standard`."""
    size, steps = preprocessing.size, list[Callable[..., Any]]()
    if max(size) <= SMALL:
        shift = [size[1] // 8, size[0] // 8]
        steps += [*geometry(preprocessing), v2.RandomCrop(size, padding=shift, padding_mode="edge")]
    else:
        interpolation = v2.InterpolationMode(preprocessing.interpolation)
        steps.append(v2.RandomResizedCrop(size, scale=(0.35, 1.0), interpolation=interpolation))
    return [*steps, v2.RandomHorizontalFlip()] if flip else steps


class Augmented(Dataset[Any]):
    """A set for training, whose images are changed at random as one of `AUGMENTATIONS` says.

    `standard` is a random shift (images up to 64 pixels) or a random resized crop, and a horizontal flip where `flip`
    allows it. `trivial` adds one random operation of random strength (TrivialAugmentWide, Müller and Hutter 2021).
    `none` prepares images as for evaluation. UsageError for another name.

    The random numbers of an item follow from `(seed, epoch, index)` alone, so that neither the number of workers or
    processes nor an interruption changes what is seen. An image that cannot be read gives its place to the next one
    that can, so batches stay whole. The images of a small set are kept decoded, but not by worker processes, which end
    with an epoch.
    """

    def __init__(
        self, dataset: Images, preprocessing: Preprocessing, *, flip: bool, seed: int, augment: str = "standard"
    ) -> None:
        check_augmentation(augment)
        self.dataset = dataset
        self.fixed = augment == "none"  # items are the same in every epoch
        self.seed = seed
        self.epoch = 0
        self._kept: Kept[Image.Image] = Kept()
        steps = geometry(preprocessing) if augment == "none" else _changes(preprocessing, flip)
        extra = [v2.TrivialAugmentWide()] if augment == "trivial" else []
        self._transform = v2.Compose([*steps, *extra, *normalisation(preprocessing)])

    @property
    def plain(self) -> Images:
        """The same images as they are evaluated."""
        return self.dataset

    def set_epoch(self, epoch: int) -> None:
        """Choose the random numbers of an epoch; call it before the epoch's iterator (and its workers) start."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Item:
        image, source = self._readable(index)
        entropy = np.random.SeedSequence([self.seed % 2**63, self.epoch, index]).generate_state(1, np.uint64)[0]
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: that would also reset the generator of a GPU, and with it dropout.
            torch.default_generator.manual_seed(int(entropy >> np.uint64(1)))
            return self._transform(image), self.dataset.label(source)

    def _readable(self, index: int) -> tuple[Image.Image, int]:
        """The first image from `index` on that can be read, and its index."""
        for step in range(len(self)):
            source = (index + step) % len(self)
            try:
                return self._kept.item(source, partial(self.dataset.image, source), self._is_small), source
            except UnreadableError as error:
                report_skipped(self.dataset, {error.name: error.reason})
        raise DataError(f"none of the {len(self)} training images can be read")

    def _is_small(self, image: Image.Image) -> bool:
        return len(self) * image.width * image.height * len(image.getbands()) <= KEPT_BYTES
