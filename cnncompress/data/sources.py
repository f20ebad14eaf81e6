"""Where images come from: folders, torchvision's classification sets."""

from __future__ import annotations

import pickle
from functools import partial
from typing import Any

import torchvision.datasets
from PIL import Image

from cnncompress.data.folders import image_folder as image_folder
from cnncompress.data.loading import Images
from cnncompress.data.sets import Data as Data
from cnncompress.data.sets import fingerprint as fingerprint
from cnncompress.errors import DataError
from cnncompress.network.preprocessing import Preprocessing

_SPLIT = ({"split": "train"}, {"split": "test"})
_TRAIN = ({"train": True}, {"train": False})
TORCHVISION: dict[str, tuple[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "cifar10": ("CIFAR10", _TRAIN),
    "cifar100": ("CIFAR100", _TRAIN),
    "country211": ("Country211", _SPLIT),
    "dtd": ("DTD", _SPLIT),
    "fashionmnist": ("FashionMNIST", _TRAIN),
    "fgvcaircraft": ("FGVCAircraft", ({"split": "trainval"}, {"split": "test"})),
    "flowers102": ("Flowers102", _SPLIT),
    "food101": ("Food101", _SPLIT),
    "gtsrb": ("GTSRB", _SPLIT),
    "imagenet": ("ImageNet", ({"split": "train"}, {"split": "val"})),
    "kmnist": ("KMNIST", _TRAIN),
    "mnist": ("MNIST", _TRAIN),
    "oxfordiiitpet": ("OxfordIIITPet", ({"split": "trainval"}, {"split": "test"})),
    "stanfordcars": ("StanfordCars", _SPLIT),
    "stl10": ("STL10", _SPLIT),
    "svhn": ("SVHN", _SPLIT),
}
DIRECTED = ("gtsrb", "kmnist", "mnist", "svhn")  # a mirrored digit, letter or traffic sign is another one


def _from_torchvision(dataset: Any, index: int) -> Image.Image:
    return dataset[index][0]


def _labels(dataset: Any) -> list[int]:
    for name in ("targets", "labels", "_labels"):
        if hasattr(dataset, name):
            return [int(label) for label in getattr(dataset, name)]
    return [int(label) for _, label in dataset._samples]


def _open_torchvision(name: str, root: str, options: dict[str, Any], preprocessing: Preprocessing) -> Images:
    builder = getattr(torchvision.datasets, TORCHVISION[name][0])
    try:
        dataset = builder(root, **options)
        labels = _labels(dataset)
    except (RuntimeError, OSError, ValueError, KeyError, EOFError, ImportError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0].partition(" You can use download")[0]
        raise DataError(
            f"cannot open {name} in {root}: {reason} (nothing is downloaded: put its files there)"
        ) from error
    return Images(partial(_from_torchvision, dataset), [str(i) for i in range(len(labels))], labels, preprocessing)


def torchvision_set(name: str, root: str, preprocessing: Preprocessing) -> Data:
    """A classification set of torchvision whose files lie in `root`; its test part is what is evaluated."""
    train_options, val_options = TORCHVISION[name][1]
    val = _open_torchvision(name, root, val_options, preprocessing)
    try:
        train = _open_torchvision(name, root, train_options, preprocessing)
    except DataError:
        if name != "imagenet":
            raise
        train = None  # the validation images alone are a common way to keep ImageNet
    parts = {"train": train, "val": val}
    entries = ((f"{name}/{part}/{i}", 0, y) for part, set_ in parts.items() if set_ for i, y in enumerate(set_.labels))
    return Data(name, val, train, max(val.labels) + 1, fingerprint(entries), flip=name not in DIRECTED)
