"""Where images come from: folders, torchvision's classification sets."""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torchvision.datasets
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from cnncompress.data.files import files_below, read_image, refuse_link
from cnncompress.data.loading import Images
from cnncompress.errors import DataError
from cnncompress.reading import MalformedError, read_json
from cnncompress.schemas import ClassIndex
from cnncompress.spec import Preprocessing

CLASS_INDEX = "class_index.json"

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


@dataclass
class Data:
    """Images to evaluate on (`val`), to train on where there are any (`train`), and to test on at the very end.

    `classes` is the number of classes the labels are drawn from, `fingerprint` tells whether two data sets are the
    same, `flip` whether a mirrored image still shows its class. `parted` is the share and the seed by which one set was
    split into `val` and `train`, None where it came so.
    """

    name: str
    val: Images
    train: Images | None
    classes: int
    fingerprint: str
    test: Images | None = None
    flip: bool = True
    parted: tuple[float, int] | None = None

    @property
    def skipped(self) -> list[str]:
        """Names of the images that could not be read so far."""
        parts = [part for part in (self.train, self.val, self.test) if part is not None]
        return sorted({name for part in parts for name in part.skipped})


def fingerprint(entries: Iterable[tuple[str, int, int]]) -> str:
    """Sixteen hexadecimal digits of the SHA-256 over `(relative path, bytes, label)`, in any order."""
    digest = hashlib.sha256()
    for entry in sorted(entries):
        digest.update(repr(entry).encode())
    return digest.hexdigest()[:16]


# --- torchvision ---


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


# --- folders ---


def _class_folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _read_class_index(path: Path) -> dict[str, int]:
    try:
        return read_json(path, ClassIndex)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except MalformedError as error:
        example = '{"cat": 0, "dog": 1}'
        raise DataError(f"{path} must map folder names to class indices, as {example}: it {error}") from error


@dataclass
class _Folder:
    """One folder of class folders and the class index of each of them."""

    path: Path
    index: dict[str, int]
    mapped: bool
    samples: list[tuple[str, int]] = field(default_factory=list)


def _scan(folder: Path, root: Path) -> _Folder:
    names = _class_folders(folder)
    if not names:
        raise DataError(f"{folder} has no class folders: images belong in {folder}/CLASS/")
    mapping = next((d / CLASS_INDEX for d in (folder, root) if (d / CLASS_INDEX).is_file()), None)
    if mapping is None:
        index = {name: i for i, name in enumerate(names)}
    else:
        known = _read_class_index(mapping)
        if unknown := [name for name in names if name not in known]:
            raise DataError(f"{mapping} has no class index for {len(unknown)} of the folders in {folder}: {unknown[0]}")
        index = {name: known[name] for name in names}
    samples, left_out = [], dict[str, str]()
    for name, label in index.items():
        path, roots = os.path.join(folder, name), _roots(folder, root)
        if reason := refuse_link(path, roots):
            raise DataError(f"{path} is {reason}; put the images themselves there")
        paths = files_below(path, roots, left_out)
        samples += [(path, label) for path in paths if path.lower().endswith(IMG_EXTENSIONS)]
    if left_out:
        first, reason = next(iter(left_out.items()))
        tqdm.write(f"warning: left out {len(left_out)} folders of images: {first} ({reason})", file=sys.stderr)
    if not samples:
        raise DataError(f"{folder} holds no images ({', '.join(IMG_EXTENSIONS)})")
    return _Folder(folder, index, mapping is not None, samples)


def _roots(folder: Path, root: Path) -> tuple[str, str]:
    """Where links may lead: the data folder, and its part where that is itself a link."""
    return os.path.realpath(root), os.path.realpath(folder)


def _check_classes(folder: _Folder, num_classes: int | None) -> None:
    if num_classes is None:
        return
    if folder.mapped:
        name, highest = max(folder.index.items(), key=lambda item: item[1])
        if highest >= num_classes:
            raise DataError(
                f"{folder.path}: class {name} has index {highest}, but the network has only {num_classes} classes"
            )
    elif len(folder.index) != num_classes:
        raise DataError(
            f"wrong number of classes: {len(folder.index)} folders in {folder.path}, {num_classes} in the network; "
            f"a {CLASS_INDEX} there can map the folders to classes"
        )


def _images(folder: _Folder, root: Path, preprocessing: Preprocessing) -> Images:
    names = [os.path.relpath(path, folder.path) for path, _ in folder.samples]
    labels = [label for _, label in folder.samples]
    return Images(partial(read_image, str(folder.path), _roots(folder.path, root), names), names, labels, preprocessing)


def _entries(part: str, folder: _Folder) -> Iterable[tuple[str, int, int]]:
    for path, label in folder.samples:
        size = os.path.getsize(path) if os.path.exists(path) else 0  # a link to nowhere counts as unreadable later
        yield f"{part}/{Path(path).relative_to(folder.path).as_posix()}", size, label


def image_folder(root: Path, preprocessing: Preprocessing, num_classes: int | None) -> Data:
    """A folder with `val/` (and `train/`) that hold one folder a class, or with the class folders themselves."""
    parts = {"val": root / "val", "train": root / "train"}
    if not parts["val"].is_dir():
        if parts["train"].is_dir() and _class_folders(parts["train"]):
            raise DataError(f"{root} has train/ but no val/: evaluation needs {root}/val/CLASS/")
        parts = {"val": root}
    folders = {part: _scan(path, root) for part, path in parts.items() if path.is_dir()}
    for folder in folders.values():
        _check_classes(folder, num_classes)
    if "train" in folders and folders["train"].index != folders["val"].index and not folders["val"].mapped:
        different = sorted(set(folders["train"].index) ^ set(folders["val"].index))
        raise DataError(f"{root}: train/ and val/ have different class folders, for instance {different[0]}")
    sets = {part: _images(folder, root, preprocessing) for part, folder in folders.items()}
    for part, images in sets.items():
        images.require_one(str(folders[part].path))
    entries = (entry for part, folder in folders.items() for entry in _entries(part, folder))
    classes = num_classes or max(max(folder.index.values()) for folder in folders.values()) + 1
    return Data(str(root), sets["val"], sets.get("train"), classes, fingerprint(entries))
