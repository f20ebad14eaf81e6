"""The files of a run as they were at one moment, however often it is replaced meanwhile."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from cnncompress.errors import RunError
from cnncompress.files.place import FILES, INFO, check_run, resolve
from cnncompress.files.publish import being_replaced
from cnncompress.files.regular import open_regular

PATIENCE_S = 10.0  # for a moment without a replacement; each takes about a millisecond
_DESCRIPTORS = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else ""
_BY_FOLDER = os.open in os.supports_dir_fd and os.stat in os.supports_dir_fd


class Snapshot:
    """The open files of a run; `path` is where it is."""

    def __init__(
        self, path: Path, files: dict[str, BinaryIO | OSError], folder: int | None, version: tuple[int, ...]
    ) -> None:
        self.path = path
        self._files = files
        self._folder = folder
        self._version = version

    def __contains__(self, name: str) -> bool:
        return not isinstance(self._files[name], FileNotFoundError)

    def file(self, name: str) -> Path:
        """A path that leads to the file while the snapshot is open; OSError where it is missing or no regular file."""
        opened = self._files[name]
        if isinstance(opened, OSError):
            raise opened
        return Path(f"{_DESCRIPTORS}/{opened.fileno()}") if _DESCRIPTORS else self.path / name

    def holds(self) -> bool:
        """True where all that was read was of this version: always, where open files have paths of their own."""
        return bool(_DESCRIPTORS) or version(self.path) == self._version

    def link(self, name: str, target: Path) -> None:
        """Make `target` the same file: a hard link where possible, else a copy."""
        source = self.file(name)
        try:
            if self._folder is None:
                os.link(self.path / name, target)
            else:
                os.link(name, target, src_dir_fd=self._folder, follow_symlinks=False)
        except OSError:  # another file system, one without hard links, or a version that is no longer there
            shutil.copyfile(source, target)


@contextmanager
def snapshot(path: str | Path) -> Iterator[Snapshot]:
    """Open all files of one version of the run at `path`; RunError where there is no run."""
    end = time.monotonic() + PATIENCE_S
    while True:
        with ExitStack() as stack:
            files = _open_all(Path(path), stack)
            if files is not None:
                yield files
                return
        if time.monotonic() > end:
            raise RunError(f"{path} is being replaced all the time; try again")


def version(path: str | Path) -> tuple[int, ...]:
    """Numbers that tell one version of the run at `path` from the next; RunError where there is no run."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            folder, info = os.stat(path), os.stat(os.path.join(path, INFO), follow_symlinks=False)
            return (folder.st_dev, folder.st_ino, info.st_ino, info.st_size, info.st_mtime_ns)
        except OSError:
            if not being_replaced(resolve(path)) or time.monotonic() > end:
                check_run(path)


def _open_all(path: Path, stack: ExitStack) -> Snapshot | None:
    """The files, those that cannot be opened as an error; None where the run was replaced meanwhile."""
    before = version(path)
    folder = None
    if _BY_FOLDER:
        try:
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return None
        stack.callback(os.close, folder)
    files: dict[str, BinaryIO | OSError] = {}
    for name in FILES:
        try:
            files[name] = stack.enter_context(open_regular(path / name if folder is None else name, folder))
        except OSError as error:
            files[name] = error
    same = version(path) == before if folder is None else _is_at(folder, path)
    return Snapshot(path, files, folder, before) if same else None


def _is_at(folder: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(folder), os.stat(path))
    except OSError:
        return False
