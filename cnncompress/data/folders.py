"""Folders of images: with one folder a class, or without labels."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cnncompress.data.files import files_below, read_image, refuse_link
from cnncompress.data.layout import drawn_on, find_layout, folders_in, images_in, is_folder, is_image, is_junk
from cnncompress.data.loading import Images
from cnncompress.data.sets import Data, fingerprint
from cnncompress.errors import DataError
from cnncompress.files.reading import MalformedError, read_json
from cnncompress.files.schemas import ClassIndex
from cnncompress.network.preprocessing import Preprocessing
from cnncompress.terminal.console import LOG
from cnncompress.text import plain

CLASS_INDEX = "class_index.json"
UNKNOWN = -1  # the label of an image that has none
NAMES_SHOWN = 3  # of what is left out


@dataclass
class _Folder:
    """One part of a data set: the class index of each of its folders, none where it has no labels, and its images."""

    path: Path
    index: dict[str, int]
    mapped: bool
    samples: list[tuple[str, int]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def labelled(self) -> bool:
        """Whether its images are in class folders."""
        return bool(self.index)


def image_folder(root: Path, preprocessing: Preprocessing, num_classes: int | None) -> Data:
    """The data set in a folder, as `layout.find_layout` sees it.

    Images are evaluated on that are in its validation part, or else in its test part, or else wherever they are. Where
    they are not in class folders they have no labels. What is left out is counted and named in a line.
    """
    layout = find_layout(root)
    folders = {part: _scan(path, root) for part, path in layout.parts.items()}
    folders = _evaluated(root, folders)
    lead = _lead(folders)
    told = _number_alike(root, folders, lead) if lead.labelled else []
    for folder in folders.values():
        if folder is lead or folder.mapped:
            _check_classes(folder, num_classes)
    for note in [*layout.told, *told, *_order_of(lead)]:
        LOG.info("%s: %s", plain(str(root)), plain(note))
    for folder in folders.values():
        _tell(folder)
    sets = {part: _images(folder, root, preprocessing) for part, folder in folders.items()}
    for part, images in sets.items():
        images.require_one(str(folders[part].path))
    entries = (entry for part, folder in folders.items() for entry in _entries(part, folder))
    labelled = folders["val"].labelled
    classes = num_classes or max((max(f.index.values()) for f in folders.values() if f.index), default=-1) + 1
    mark, test = fingerprint(entries), sets.get("test")
    return Data(str(root), sets["val"], sets.get("train"), classes, mark, test, labelled=labelled)


def _evaluated(root: Path, folders: dict[str, _Folder]) -> dict[str, _Folder]:
    """The parts with one of them as `val`: a labelled one where there is one; parts without labels beside it go."""
    order = [part for part in ("val", "test") if part in folders]
    if not order:
        train = folders["train"]
        more = (
            ""
            if not train.labelled
            else f" (it is split), or put images to evaluate on into {train.path.parent}/val/CLASS/"
        )
        raise DataError(f"{root} has {train.path.name}/ but no val/ or test/: give {train.path} alone{more}")
    chosen = next((part for part in order if folders[part].labelled), order[0])
    if not folders[chosen].labelled and "train" in folders and folders["train"].labelled:
        raise DataError(
            f"{folders[chosen].path} has no class folders, so there is nothing to evaluate on: give {root}/val/CLASS/, "
            f"or {folders['train'].path} alone"
        )
    parts = {"val": folders[chosen]}
    for part in ("train", "test"):
        if part in folders and part != chosen and folders[part].labelled == folders[chosen].labelled:
            parts[part] = folders[part]
    said = ", ".join(f"{part} from {_what(folder, root)}" for part, folder in parts.items())
    if list(folders) != ["val"]:
        LOG.info("%s: %s", plain(str(root)), plain(said))
    return parts


def _order_of(folder: _Folder) -> list[str]:
    """What to know where classes are called by numbers, and other ones than they get."""
    names = [name for name in folder.index if name.isdecimal()]
    if folder.mapped or len(names) < len(folder.index) or names == sorted(names, key=int):
        return []
    first = ", ".join(f"{name} is {folder.index[name]}" for name in names[:NAMES_SHOWN])
    return [f"classes are numbered in the order of their names as text ({first}, ...); {CLASS_INDEX} has another order"]


def _what(folder: _Folder, root: Path) -> str:
    classes = f"in {len(folder.index)} classes" if folder.labelled else "without labels"
    return f"{os.path.relpath(folder.path, root)}/ ({len(folder.samples)} images {classes})"


# --- one part ---


def _scan(folder: Path, root: Path) -> _Folder:
    drawn = drawn_on(folder)
    names = [] if drawn else folders_in(folder)
    if not names:
        return _unlabelled(drawn or folder, root, drawn is not None)
    mapping = next((d / CLASS_INDEX for d in (folder, root) if (d / CLASS_INDEX).is_file()), None)
    if mapping is None:
        index = {name: i for i, name in enumerate(names)}
    else:
        known = _read_class_index(mapping)
        if unknown := [name for name in names if name not in known]:
            raise DataError(f"{mapping} has no class index for {len(unknown)} of the folders in {folder}: {unknown[0]}")
        index = {name: known[name] for name in names}
    scanned = _Folder(folder, index, mapping is not None)
    roots = _roots(folder, root)
    for name, label in index.items():
        path = os.path.join(folder, name)
        if reason := refuse_link(path, roots):
            raise DataError(f"{path} is {reason}; put the images themselves there")
        _take(scanned, files_below(path, roots, scanned.left_out), label)
    for name in images_in(folder):
        scanned.left_out[str(folder / name)] = "beside the class folders"
    return _with_images(scanned)


def _unlabelled(folder: Path, root: Path, drawn: bool) -> _Folder:
    scanned = _Folder(folder, {}, False)
    paths = files_below(str(folder), _roots(folder, root), scanned.left_out) if drawn else _direct(folder)
    _take(scanned, paths, UNKNOWN)
    return _with_images(scanned)


def _direct(folder: Path) -> list[str]:
    return sorted(entry.path for entry in os.scandir(folder) if not is_folder(entry))


def _take(scanned: _Folder, paths: Iterable[str], label: int) -> None:
    """Add the images among some files; the others are left out."""
    for path in paths:
        name = os.path.basename(path)
        if is_image(name) and not is_junk(name):
            scanned.samples.append((path, label))
        elif not is_junk(name) and name != CLASS_INDEX:
            suffix = os.path.splitext(name)[1]
            scanned.left_out[path] = f"no image by its suffix {suffix}" if suffix else "no suffix"


def _with_images(scanned: _Folder) -> _Folder:
    if not scanned.samples:
        files = f": {_summary(scanned)}" if scanned.left_out else ""
        raise DataError(f"{scanned.path} holds no images{files}; images belong in {scanned.path}/CLASS/")
    return scanned


def _summary(folder: _Folder) -> str:
    """The files left out of a part: their number and the first name, for each reason."""
    counts = Counter(folder.left_out.values())
    first = {reason: path for path, reason in reversed(folder.left_out.items())}
    words = [
        f"{count} {os.path.relpath(first[reason], folder.path)}{' and more' * (count > 1)} ({reason})"
        for reason, count in counts.most_common(NAMES_SHOWN)
    ]
    return plain("; ".join(words) + "; ..." * (len(counts) > NAMES_SHOWN))


def _tell(folder: _Folder) -> None:
    if folder.left_out:
        LOG.warning("warning: left out of %s: %s", plain(str(folder.path)), _summary(folder))


def _roots(folder: Path, root: Path) -> tuple[str, str]:
    """The folders that links may lead into: the data folder, and its part where that is itself a link."""
    return os.path.realpath(root), os.path.realpath(folder)


def _read_class_index(path: Path) -> dict[str, int]:
    try:
        return read_json(path, ClassIndex)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except MalformedError as error:
        example = '{"cat": 0, "dog": 1}'
        raise DataError(f"{path} must map folder names to class indices, as {example}: it {error}") from error


# --- classes ---


def _check_classes(folder: _Folder, num_classes: int | None) -> None:
    if num_classes is None or not folder.labelled:
        return
    if folder.mapped:
        name, highest = max(folder.index.items(), key=lambda item: item[1])
        if highest >= num_classes:
            raise DataError(
                f"{folder.path}: class {name} has index {highest}, but the network has only {num_classes} classes"
            )
    elif len(folder.index) != num_classes:
        used = {label for _, label in folder.samples}
        empty = [name for name, label in folder.index.items() if label not in used]
        hint = f" ({len(empty)} of them without images: {empty[0]})" if empty else ""
        raise DataError(
            f"wrong number of classes: {len(folder.index)} folders in {folder.path}{hint}, {num_classes} in the "
            f"network; a {CLASS_INDEX} there can map the folders to classes"
        )


def _lead(folders: dict[str, _Folder]) -> _Folder:
    """The part whose classes the others are numbered by: one with a class index, else the one to train on."""
    order = [folders[part] for part in ("train", "val", "test") if part in folders]
    return next((folder for folder in order if folder.mapped), order[0])


def _number_alike(root: Path, folders: dict[str, _Folder], lead: _Folder) -> list[str]:
    """Number the classes of each part by their names as `lead` does; what to say of it.

    DataError for a class to train or evaluate on that `lead` lacks, or has another number for. A test part with such a
    class goes.
    """
    told = []
    for part, folder in list(folders.items()):
        where = f"{folder.path.name}/ and {lead.path.name}/"
        if lacking := next((name for name in folder.index if name not in lead.index and not folder.mapped), None):
            what = f"{where} have different class folders: {lead.path.name}/ has no {lacking}"
        elif other := next((n for n, label in folder.index.items() if lead.index.get(n, label) != label), None):
            what = f"{where} have different numbers for the class {other} in their {CLASS_INDEX}" * folder.mapped
        else:
            what = ""
        if what and part != "test":
            raise DataError(f"{root}: {what}")
        if what:
            del folders[part]
            told.append(f"{folder.path.name}/ is left out: {what}")
        elif folder.index != lead.index and not folder.mapped:
            told.append(
                f"{folder.path.name}/ has {len(folder.index)} of the {len(lead.index)} classes of {lead.path.name}/, "
                "which are numbered as there"
            )
            _renumber(folder, lead.index)
    return told


def _renumber(folder: _Folder, index: dict[str, int]) -> None:
    names = {label: name for name, label in folder.index.items()}
    folder.samples = [(path, index[names[label]]) for path, label in folder.samples]
    folder.index = {name: index[name] for name in folder.index}


# --- images ---


def _images(folder: _Folder, root: Path, preprocessing: Preprocessing) -> Images:
    names = [os.path.relpath(path, folder.path) for path, _ in folder.samples]
    labels = [label for _, label in folder.samples]
    return Images(partial(read_image, str(folder.path), _roots(folder.path, root), names), names, labels, preprocessing)


def _entries(part: str, folder: _Folder) -> Iterable[tuple[str, int, int]]:
    for path, label in folder.samples:
        size = os.path.getsize(path) if os.path.exists(path) else 0  # a link to nowhere counts as unreadable later
        yield f"{part}/{Path(path).relative_to(folder.path).as_posix()}", size, label
