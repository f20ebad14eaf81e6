"""The files below a folder of images, whatever else stands among them."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from functools import cache

from PIL import Image, UnidentifiedImageError

from cnncompress.data.layout import is_folder, is_junk
from cnncompress.files.regular import NotRegularError, leads_out, open_regular

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM", "MPO", "JPEG2000", "TGA", "ICO")


def files_below(folder: str, roots: Collection[str], left_out: dict[str, str]) -> list[str]:
    """The paths of all files below `folder`, in the order of their folders and names.

    A link to a folder is followed where `refuse_link` does not object, and each folder is looked into once. `left_out`
    takes the path of every link that is not followed, and the reason.
    """
    seen: set[str] = set()
    folders: list[tuple[str, list[str]]] = []

    def enter(path: str) -> None:
        real = os.path.realpath(path)
        if reason := refuse_link(path, roots):
            left_out[path] = reason
        elif real in seen:
            left_out[path] = "a link to a folder that is read already"
        else:
            seen.add(real)
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
            folders.append((path, [entry.path for entry in entries if not is_folder(entry)]))
            inner = [entry for entry in entries if is_folder(entry) and not is_junk(entry.name)]
            for entry in sorted(inner, key=lambda entry: entry.is_symlink()):  # real folders before links to them
                enter(entry.path)

    enter(folder)
    return [path for _, paths in sorted(folders) for path in paths]


def refuse_link(path: str, roots: Collection[str]) -> str:
    """Why a link to a folder is not followed: it ends in none of `roots` (real paths), or in a folder around it."""
    if leads_out(path, *roots):
        return "a link out of the folder"
    around = os.path.realpath(os.path.dirname(path)) + os.sep
    if os.path.islink(path) and around.startswith(os.path.realpath(path).rstrip(os.sep) + os.sep):
        return "a link to a folder that it is in"
    return ""


@cache
def formats() -> list[str]:
    """Pillow's formats that images are read in: none that calls another program, as EPS does."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def read_image(folder: str, roots: Sequence[str], names: Sequence[str], index: int) -> Image.Image:
    """The image `names[index]` below `folder`; OSError for what is no regular file or a link out of `roots`."""
    path = os.path.join(folder, names[index])
    if leads_out(path, *roots):
        raise NotRegularError(path, "a link out of the folder")
    try:
        with open_regular(path, follow=True) as file, Image.open(file, formats=formats()) as image:
            image.load()
            return image
    except UnidentifiedImageError:
        raise OSError("it is empty" if not os.path.getsize(path) else "it is no image in a known format") from None
