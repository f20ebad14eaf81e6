"""Outputs that are whole or absent: written beside their place under a temporary name, then moved in atomically."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cnncompress.errors import RunError
from cnncompress.files.regular import kind_of

BEGINNING = 4096  # bytes, which hold a zero in files that are no text
LONG_NAME = 100  # bytes; what stands beside a file of a longer name is named after a hash of it
_WITHOUT_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)  # a pipe that nobody reads never opens
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
    longest = os.pathconf(parent, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
    if any(len(os.fsencode(name)) > longest for name in target.relative_to(parent).parts):
        raise RunError(f"cannot write {target}: a name there is longer than {longest} bytes")


def check_file(path: str | Path, force: bool = False) -> Path:
    """The real path of a file to write; RunError unless one can be written there.

    A file is replaced with `force`, but not one that makes a run.
    """
    from cnncompress.files.place import FILES, INFO

    with os_errors(f"write {path}"):
        if kind := kind_of(path, follow=True):
            raise RunError(f"cannot write {path}: it is {kind}; name a file{' in it' * (kind == 'a folder')}")
        target = Path(os.path.realpath(path))
        if target.name in FILES and (target.parent / INFO).exists():
            raise RunError(f"cannot write {path}: that is a file of the run {target.parent}; choose another name")
        if os.path.lexists(target) and not force:
            raise RunError(f"{path} already exists; choose another name or replace it with --force")
        check_parent(target)
    return target


def check_text_output(path: str | Path) -> None:
    """RunError unless `write_text` can write at `path`, and for a file there that is no text."""
    if not _is_stream(path):
        target = check_file(path, force=True)
        with os_errors(f"write {path}"):
            if target.exists() and b"\0" in _beginning(target):
                raise RunError(f"cannot write {path}: what is there is no text, and is left alone; choose another name")


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(BEGINNING)


def _is_stream(path: str | Path) -> bool:
    """True for what is written into and never replaced: a device, a named pipe."""
    with os_errors(f"write {path}"):
        return kind_of(path, follow=True) in ("a device", "a named pipe")


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, replacing one that is there as a whole; into a device or a pipe the text is written.

    RunError where the system refuses, and for a named pipe that nobody reads.
    """
    if not _is_stream(path):
        with replacing(check_file(path, force=True), force=True) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return
    with os_errors(f"write {path}"):
        try:
            handle = os.open(path, os.O_WRONLY | _WITHOUT_WAITING)
        except OSError as error:
            if error.errno == errno.ENXIO:
                raise RunError(f"cannot write {path}: it is a named pipe that nobody reads") from error
            raise
        if _WITHOUT_WAITING:
            os.set_blocking(handle, True)
        with os.fdopen(handle, "wb") as stream:
            stream.write(text.encode())


@contextmanager
def replacing(target: Path, force: bool = False, rescue: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Give a temporary path beside `target` to make a file or folder at; on success it becomes `target`.

    The content is on the disk before it is moved, and `target` is at every moment the old whole or the new whole.
    Without `force`, a folder with content is not replaced. A folder that was replaced is passed to `rescue` before it
    is removed. Missing parent folders are made. After any failure, an interrupt included, nothing is left behind; what
    a killed process left is cleaned up at the next attempt. Raises RunError where the system refuses.
    """
    temporary = _sibling(target, "tmp")
    made = [p for p in target.parents if not p.exists()]
    done, replaced = False, None
    try:
        with os_errors(f"write {target}"):
            target.parent.mkdir(parents=True, exist_ok=True)
            recover(target)
            _clean(target)
            yield temporary
            _sync(temporary)
            replaced = _move(temporary, target, force)
            done = True
            _sync_folder(target.parent)
            if replaced is not None:
                if rescue is not None:
                    rescue(replaced)
                _remove(replaced)
    finally:
        _remove(temporary)
        for path in (temporary, replaced or temporary):
            _in_use.discard(path.name)
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


def being_replaced(target: Path) -> bool:
    """True where `target` is away for the moment between the two renames of a replacement."""
    return not os.path.lexists(target) and bool(_siblings(target, "old"))


_in_use: set[str] = set()  # names of what this process is writing now


def beside(target: Path, ending: str) -> Path:
    """The path of a hidden file or folder that belongs to `target`, in the same folder."""
    name = os.fsencode(target.name)
    short = target.name if len(name) <= LONG_NAME else hashlib.sha256(name).hexdigest()[:24]
    return target.with_name(f".{short}.{ending}")


def _sibling(target: Path, kind: str) -> Path:
    # host and process tell later whether the owner still lives; the suffix stays, as some writers look at it
    owner = f"{platform.node()}-{os.getpid()}-{secrets.token_hex(4)}"
    suffix = target.suffix if re.fullmatch(r"\.\w{1,12}", target.suffix, re.ASCII) else ""
    path = beside(target, f"{kind}-{owner}{suffix}")
    _in_use.add(path.name)
    return path


def _siblings(target: Path, kind: str) -> list[Path]:
    prefix = beside(target, f"{kind}-").name
    try:
        return [target.parent / name for name in os.listdir(target.parent) if name.startswith(prefix)]
    except OSError:
        return []


def _abandoned(path: Path) -> bool:
    """True where nobody on this host is writing a temporary sibling any more."""
    owner = re.search(r"\.(?:tmp|old)-(.*)-(\d+)-[0-9a-f]{8}(?:\.\w+)?$", path.name)
    if not owner or owner[1] != platform.node():
        return False
    if int(owner[2]) == os.getpid():
        return path.name not in _in_use
    if os.name == "nt":  # there, signal 0 would be Ctrl-C
        return False
    try:
        os.kill(int(owner[2]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
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
    with suppress(OSError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _sync_folder(path: Path) -> None:
    if sys.platform == "win32":  # folders cannot be opened there
        return
    _sync_file(path)


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync(path: Path) -> None:
    """Bring a file, or a folder with all its files, to the disk."""
    if path.is_file():
        _sync_file(path)
    for folder, _, names in os.walk(path):
        for name in names:
            if not kind_of(os.path.join(folder, name)):
                with suppress(PermissionError):  # somebody else's, taken along
                    _sync_file(Path(folder, name))
        _sync_folder(Path(folder))


def _move(temporary: Path, target: Path, force: bool) -> Path | None:
    """Put `temporary` in the place of `target`; where the folder is now that was there."""
    if kind := kind_of(target).replace("a folder", ""):
        raise RunError(f"cannot write {target}: it is {kind}, and is left alone")
    try:
        os.replace(temporary, target)
        return None
    except OSError as error:
        # Windows denies access where a folder is there
        if not force or error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EACCES) or not target.is_dir():
            raise
    return temporary if _exchange(temporary, target) else _rename_twice(temporary, target)


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


def _rename_twice(temporary: Path, target: Path) -> Path:
    """The replacement where folders cannot be exchanged; `recover` repairs a death in between."""
    old = _sibling(target, "old")
    os.rename(target, old)
    try:
        os.rename(temporary, target)
    except BaseException:
        if not os.path.lexists(target):
            os.rename(old, target)
        _in_use.discard(old.name)
        raise
    return old
