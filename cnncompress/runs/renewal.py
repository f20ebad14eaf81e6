"""A new folder in the place of a run: what is written anew, and all the rest of what the run held."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cnncompress.errors import RunError
from cnncompress.files.place import FILES, HALF_WRITTEN, resolve
from cnncompress.files.publish import replacing
from cnncompress.files.regular import kind_of
from cnncompress.runs.lock import reserved


@contextmanager
def renewing(path: str | Path, force: bool = False) -> Iterator[Path]:
    """Give a folder to write a run's files in; on success it becomes the run at `path`, in one step.

    What else was in the run that it replaces goes along, hard-linked: files of a training and of the user, links as
    links; not what a training that was killed left half-written. Raises as `check_output` and `writing` do.
    """
    target = resolve(path)
    written: set[str] = {*FILES, *HALF_WRITTEN}
    with (
        reserved(path, force),
        replacing(target, force, rescue=lambda old: _rescue(old, target, written)) as folder,
    ):
        folder.mkdir()
        yield folder
        written |= set(os.listdir(folder))
        if target.is_dir():
            for name in sorted(set(os.listdir(target)) - written):
                take_along(target / name, folder / name)
            os.chmod(folder, stat.S_IMODE(os.stat(target).st_mode))


def take_along(source: Path, target: Path) -> None:
    """Make `target` the same as `source`: a hard link where possible, a link to the same place for a link.

    RunError for what can only be moved, such as a pipe, on a file system without hard links.
    """
    kind = kind_of(source)
    if kind == "a link":
        os.symlink(os.readlink(source), target)
    elif kind == "a folder":
        target.mkdir()
        for name in sorted(set(os.listdir(source)) - HALF_WRITTEN):
            take_along(source / name, target / name)
        shutil.copystat(source, target)
    else:
        try:
            os.link(source, target, follow_symlinks=False)
        except (OSError, NotImplementedError) as error:  # another file system, or one without hard links
            if kind:
                raise RunError(f"{source} is {kind} and cannot be taken along; move it out of the run") from error
            shutil.copy2(source, target, follow_symlinks=False)


def _rescue(old: Path, new: Path, written: Collection[str] = ()) -> None:
    """Move what came into `old` while `new` was written, but for the names that were `written`, into `new`."""
    for name in set(os.listdir(old)) - set(written) - HALF_WRITTEN:
        with suppress(OSError):
            if kind_of(old / name) == kind_of(new / name) == "a folder":
                _rescue(old / name, new / name)
            elif not _same(old / name, new / name):
                os.replace(old / name, new / name)


def _same(one: Path, other: Path) -> bool:
    try:
        a, b = os.lstat(one), os.lstat(other)
    except FileNotFoundError:
        return False
    if stat.S_ISLNK(a.st_mode) and stat.S_ISLNK(b.st_mode):
        return os.readlink(one) == os.readlink(other)
    return os.path.samestat(a, b) or (a.st_mode, a.st_size, a.st_mtime_ns) == (b.st_mode, b.st_size, b.st_mtime_ns)
