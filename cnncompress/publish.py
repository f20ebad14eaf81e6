"""Outputs that are whole or absent: written beside their place under a temporary name, then moved in atomically."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cnncompress.errors import RunError

_UNSUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}


@contextmanager
def os_errors(doing: str) -> Iterator[None]:
    """Turn an OSError (disk full, read-only, no permission) into a RunError "cannot `doing`: reason"."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error).split("\n")[0]
        raise RunError(f"cannot {doing}: {reason}") from error


def check_parent(target: Path) -> None:
    """RunError unless files can be made in the folder of `target`, or that folder can be made."""
    parent = next(p for p in target.parents if os.path.lexists(p))
    if not parent.is_dir():
        raise RunError(f"cannot write {target}: {parent} is not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise RunError(f"cannot write {target}: no permission to write in {parent}")


def check_file(path: str | Path, force: bool = False) -> Path:
    """The real path of a file to write; RunError unless one can be written there. A file is replaced with `force`."""
    with os_errors(f"write {path}"):
        target = Path(os.path.realpath(path))
        if target.is_dir():
            raise RunError(f"cannot write {path}: it is a folder; name a file in it")
        if os.path.lexists(target) and not force:
            raise RunError(f"{path} already exists; choose another name or replace it with --force")
        check_parent(target)
    return target


@contextmanager
def replacing(target: Path, force: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `target` to make a file or folder at; on success it becomes `target`.

    The content is on the disk before it is moved, and `target` is at every moment the old whole or the new whole.
    Without `force`, a folder with content is not replaced. Missing parent folders are made. After any failure, an
    interrupt included, nothing is left behind; what a killed process left is cleaned up at the next attempt. Raises
    RunError where the system refuses.
    """
    temporary = _sibling(target, "tmp")
    made = [p for p in target.parents if not p.exists()]
    done = False
    try:
        with os_errors(f"write {target}"):
            target.parent.mkdir(parents=True, exist_ok=True)
            recover(target)
            _clean(target)
            yield temporary
            _sync(temporary)
            _move(temporary, target, force)
            done = True
            _sync_folder(target.parent)
    finally:
        _remove(temporary)
        if not done:
            for parent in made:
                with suppress(OSError):
                    parent.rmdir()


def recover(target: Path) -> None:
    """Bring `target` back where a process died between the two renames of a replacement."""
    if os.path.lexists(target):
        return
    left = [p for p in _siblings(target, "old") if _abandoned(p)]
    if left:
        with suppress(OSError):
            os.rename(max(left, key=lambda p: p.stat().st_mtime), target)


def _sibling(target: Path, kind: str) -> Path:
    # host and process tell later whether the owner still lives; the suffix stays, as some writers look at it
    owner = f"{platform.node()}-{os.getpid()}-{secrets.token_hex(4)}"
    return target.with_name(f".{target.name}.{kind}-{owner}{target.suffix}")


def _siblings(target: Path, kind: str) -> list[Path]:
    prefix = f".{target.name}.{kind}-"
    try:
        return [target.parent / name for name in os.listdir(target.parent) if name.startswith(prefix)]
    except OSError:
        return []


def _abandoned(path: Path) -> bool:
    """True where the process of this host that made a temporary sibling is gone."""
    owner = re.search(r"\.(?:tmp|old)-(.*)-(\d+)-[0-9a-f]{8}[^-]*$", path.name)
    if not owner or owner[1] != platform.node():
        return False
    try:
        os.kill(int(owner[2]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def _clean(target: Path) -> None:
    """Remove what dead processes left of `target`."""
    kinds = ("tmp", "old") if os.path.lexists(target) else ("tmp",)
    for kind in kinds:
        for path in _siblings(target, kind):
            if _abandoned(path):
                _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync(path: Path) -> None:
    for folder, _, names in os.walk(path):
        for name in [*names, "."]:
            _sync_folder(Path(folder, name))
    if path.is_file():
        _sync_folder(path)


def _move(temporary: Path, target: Path, force: bool) -> None:
    try:
        os.replace(temporary, target)
    except OSError as error:
        if not force or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not _exchange(temporary, target):
            _rename_twice(temporary, target)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders in one step; False where the system or the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if renameat2(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code))


def _rename_twice(temporary: Path, target: Path) -> None:
    """The replacement where folders cannot be exchanged; `recover` repairs a death in between."""
    old = _sibling(target, "old")
    os.rename(target, old)
    try:
        os.rename(temporary, target)
    except BaseException:
        if not os.path.lexists(target):
            os.rename(old, target)
        raise
    finally:
        if os.path.lexists(target):
            _remove(old)
