"""How people lay out folders of images: which folders are parts of a data set, which are classes, which are neither."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from cnncompress.errors import DataError

PARTS = {
    "train": ("train", "training", "tr"),
    "val": ("val", "valid", "validation", "validate", "dev", "eval", "evaluation"),
    "test": ("test", "testing", "tests"),
}
_ENDINGS = re.compile(r"[-_ ]?(set|data|dataset|images|imgs|split)?[-_ ]?((19|20)\d\d)?$")  # train2017 of COCO
_FOLD = re.compile(r"(fold|split|part|subset|cv)[-_ ]?\d+", re.IGNORECASE)
MOST_LEVELS = 3  # of packaging within packaging
JUNK = ("__macosx", "__pycache__", "@eadir", "$recycle.bin", "lost+found", "thumbs.db", "desktop.ini")
# What is said about the images of a data set in folders beside them: boxes, masks, lists, attributes.
DRAWN = (
    *("label", "labels", "mask", "masks", "annotation", "annotations", "bboxes", "labelmaps", "lists", "splits"),
    *("segmentation", "segmentations", "segmentationclass", "segmentationobject", "imagesets", "attributes", "parts"),
)
SHOWN = ("image", "images", "imgs", "img", "jpegimages")
# What Pillow reads without help from other programs.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".png", ".apng", ".bmp", ".dib", ".gif", ".webp", ".avif", ".tif"),
    *(".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".ico"),
)


@dataclass
class Layout:
    """The folders of a data set's parts by name (`val`, `train`, `test`), and what was decided on the way, in words."""

    parts: dict[str, Path]
    told: list[str] = field(default_factory=list)


def part_of(name: str) -> str | None:
    """The part of a data set that the name of a folder stands for (`Training`, `test_set`, `valid`), or None."""
    word = name.casefold()
    for candidate in (word, _ENDINGS.sub("", word)):
        for part, names in PARTS.items():
            if candidate in names:
                return part
    return None


def is_junk(name: str) -> bool:
    """Whether a file or folder is what systems and programs leave among people's own."""
    return name.startswith(".") or name.casefold() in JUNK


def is_image(name: str) -> bool:
    """Whether a file is an image by its suffix."""
    return name.lower().endswith(SUFFIXES)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry of a folder is one, or a link to one; a link to itself is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def folders_in(folder: Path) -> list[str]:
    """The names of the folders in a folder, in order, without junk."""
    return sorted(entry.name for entry in os.scandir(folder) if is_folder(entry) and not is_junk(entry.name))


def images_in(folder: Path) -> list[str]:
    """The names of the images directly in a folder, in order, without junk."""
    names = (entry.name for entry in os.scandir(folder) if not is_folder(entry))
    return sorted(name for name in names if is_image(name) and not is_junk(name))


def find_layout(root: Path) -> Layout:
    """The parts of the data set in a folder; the folder itself is all there is (`val`) where it has none.

    Folders are parts by their names where nothing but parts stands beside them, or where class folders are in them: one
    folder called `train` among others with images is a class. Packaging around them is looked through.
    DataError for two folders that are the same part.
    """
    folder, told = _unpacked(root, part=None)
    names = folders_in(folder)
    parts = {name: part for name in names if (part := part_of(name)) and os.listdir(folder / name)}
    others = [name for name in names if name not in parts]
    shown = [name for name in others if images_in(folder / name) or folders_in(folder / name)]
    if not parts or (shown and not any(folders_in(folder / name) for name in parts)):
        _refuse_folds(folder, names)
        return Layout({"val": folder}, told)
    folders: dict[str, Path] = {}
    for name, part in parts.items():
        if part in folders:
            raise DataError(f"{folder} has two folders for one part, {folders[part].name} and {name}: give one of them")
        folders[part] = folder / name
    if others:
        told.append(f"left out what stands beside the parts: {', '.join(others[:3])}{', ...' * (len(others) > 3)}")
    return Layout({part: _unpacked(path, part)[0] for part, path in folders.items()}, told)


def _refuse_folds(folder: Path, names: list[str]) -> None:
    """DataError where the folders in a folder are the folds of a cross-validation, which hold the classes."""
    if len(names) > 1 and all(_FOLD.fullmatch(name) and len(folders_in(folder / name)) > 1 for name in names):
        raise DataError(
            f"{folder} holds folds ({', '.join(names[:3])}{', ...' * (len(names) > 3)}), which are no classes: put the "
            f"folds to train on into {folder}/train/CLASS/ and one into {folder}/val/CLASS/, or give one of them"
        )


def _unpacked(folder: Path, part: str | None) -> tuple[Path, list[str]]:
    """The folder within folders that hold nothing else: `data/data/train`, `test_set/test_set/CLASS`."""
    start = folder
    while True:
        names = folders_in(folder)
        inner = _shown_within(folder, names) if part is None else None
        if inner is None and (len(names) != 1 or images_in(folder) or not _is_packaging(folder / names[0], part)):
            break
        folder = inner or folder / names[0]
    return folder, [f"its images are in {folder}"] if folder != start else []


def _shown_within(folder: Path, names: list[str]) -> Path | None:
    """The images beside what is said about them, where they are in parts or in classes of their own.

    As `images/train` beside `labels/train`, and `images/sparrow` beside `attributes`.
    """
    inner = _shown_beside(folder, names)
    return inner if inner is not None and len(names) > 1 and folders_in(inner) else None


def _shown_beside(folder: Path, names: list[str]) -> Path | None:
    """The one folder of images among those in a folder, where the others say something about them."""
    words = {name.casefold() for name in names}
    shown = [name for name in names if name.casefold() in SHOWN]
    return folder / shown[0] if len(shown) == 1 and words <= {*SHOWN, *DRAWN} else None


def _is_packaging(inner: Path, part: str | None, depth: int = 0) -> bool:
    """Whether the only folder in a folder is no class but holds the parts or the classes."""
    if inner.is_symlink() or depth > MOST_LEVELS:
        return False
    if part is not None:
        return part_of(inner.name) == part
    within = folders_in(inner)
    if len(within) != 1:
        return len(within) > 1
    return part_of(within[0]) is not None or _is_packaging(inner / within[0], None, depth + 1)


def drawn_on(folder: Path) -> Path | None:
    """The images of a folder that keeps what is said about them (boxes, masks) beside them, not classes; or None."""
    names = folders_in(folder)
    shown = _shown_beside(folder, names)
    return shown if shown is not None and (len(names) > 1 or _has_images(shown)) else None


def _has_images(folder: Path) -> bool:
    return not folders_in(folder) and bool(images_in(folder))
