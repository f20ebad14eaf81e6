"""Opening regular files only: what is in a folder may also be a pipe that never ends, a device, or a link elsewhere."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

_KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


class NotRegularError(OSError):
    """Raised for something other than a regular file; `strerror` names it."""

    def __init__(self, path: object, kind: str) -> None:
        super().__init__(0, f"it is {kind}, not a regular file", str(path))

    def __str__(self) -> str:
        return str(self.strerror)


def kind_of(path: str | Path, follow: bool = False) -> str:
    """The kind of what is at `path`: "a link", "a named pipe", ...; "" for a regular file and for nothing."""
    try:
        mode = os.stat(path, follow_symlinks=follow).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return _kind(mode)


def _kind(mode: int) -> str:
    return "" if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "a special file")


def open_regular(path: str | Path, folder: int | None = None, follow: bool = False) -> BinaryIO:
    """Open a regular file for reading without ever waiting; a link is followed only with `follow`.

    `folder` is the descriptor of a folder that `path` is relative to. NotRegularError for anything else, OSError where
    the system refuses.
    """
    if kind := _kind(os.stat(path, dir_fd=folder, follow_symlinks=follow).st_mode):
        raise NotRegularError(path, kind)  # opening a device may already do something
    flags = _FLAGS if follow else _FLAGS | getattr(os, "O_NOFOLLOW", 0)
    handle = os.open(path, flags, dir_fd=folder)
    if kind := _kind(os.fstat(handle).st_mode):
        os.close(handle)
        raise NotRegularError(path, kind)
    return os.fdopen(handle, "rb")


def leads_out(path: str | Path, *folders: str) -> bool:
    """True for a link whose end lies in none of `folders`, which are real paths."""
    if not os.path.islink(path):
        return False
    real = os.path.realpath(path)
    return not any(real == folder or real.startswith(folder.rstrip(os.sep) + os.sep) for folder in folders)
