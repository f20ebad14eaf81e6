"""Images for calibration, fine-tuning and evaluation."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from cnncompress.data.augmentation import Augmented, check_augmentation
from cnncompress.data.builtin import BUILTIN, built_in
from cnncompress.data.folders import image_folder
from cnncompress.data.loading import Images, Loader, evaluation_transform, make_loader
from cnncompress.data.sources import Data, torchvision_set
from cnncompress.errors import DataError, UsageError
from cnncompress.names.data import check_data, is_torchvision
from cnncompress.network.preprocessing import Preprocessing

__all__ = [
    "Augmented",
    "Data",
    "Images",
    "Loader",
    "check_augmentation",
    "evaluation_transform",
    "load_data",
    "make_loader",
    "split",
]


def load_data(spec: str, preprocessing: Preprocessing, num_classes: int | None) -> Data:
    """Open a data set: a folder, `NAME:ROOT` for a torchvision set such as `cifar10:data`, or a built-in one.

    The built-in ones are `digits` and `photodigits`; `digits:test` is the test part alone.

    A folder holds `val/` (and `train/`) with one folder a class, or the class folders themselves, which are then all
    for evaluation. Class folders are numbered in order of their names, or by a `class_index.json` (folder name →
    class index) beside them or in the root, which may name a part of the network's classes. Where `val/` has some of
    the classes of `train/`, they are numbered as there. Images are decoded only when asked for; EXIF orientation is
    ignored, as torchvision does. `num_classes` None skips the check against the network's outputs.

    Raises DataError for missing, empty or unreadable data and for classes the network lacks, UsageError for an
    unknown kind of data.
    """
    check_data(spec)
    kind, _, root = spec.partition(":")
    if kind in BUILTIN:
        return _checked(built_in(kind, root, preprocessing), num_classes)
    if is_torchvision(spec):
        return _checked(torchvision_set(kind.lower(), root, preprocessing), num_classes)
    try:
        return image_folder(Path(spec), preprocessing, num_classes)
    except OSError as error:
        raise DataError(f"cannot read {error.filename or spec}: {error.strerror or error}") from error


def _checked(data: Data, num_classes: int | None) -> Data:
    if num_classes is not None and data.classes != num_classes:
        raise DataError(f"wrong number of classes: {data.classes} in {data.name}, {num_classes} in the network")
    return data


def split(data: Data, fraction: float, seed: int) -> Data:
    """A data set without training images, split in two: the share `fraction` of every class stays in `val`.

    The same `seed` gives the same split; classes keep their shares to within one image. A set that has training
    images already is returned as it is. UsageError where a part would be empty.
    """
    if data.train is not None:
        return data
    if not 0 < fraction < 1:
        raise UsageError(f"the share of images kept for validation must be between 0 and 1, not {fraction}")
    n = len(data.val)
    order = np.random.RandomState(seed if seed < 2**32 else [seed % 2**32, seed // 2**32]).permutation(n)
    by_class = order[np.argsort([data.val.label(i) for i in order], kind="stable")]
    # Every k-th image of the list sorted by class, for k = 1 / fraction: stratified, and the total is exact.
    steps = np.floor(np.arange(n + 1) * fraction + 1e-9)
    chosen = np.diff(steps) > 0
    val, train = np.sort(by_class[chosen]).tolist(), np.sort(by_class[~chosen]).tolist()
    if not val or not train:
        raise UsageError(f"{data.name}: {n} images cannot be split at {fraction} for validation")
    return dataclasses.replace(data, val=data.val.subset(val), train=data.val.subset(train), parted=(fraction, seed))
