"""One writer at a time: a lock beside a run, which ends with the process that holds it, and who that is."""

from __future__ import annotations

import errno
import json
import os
import platform
import shlex
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from cnncompress.errors import RunError
from cnncompress.files.place import check_output, resolve
from cnncompress.files.publish import beside, os_errors
from cnncompress.terminal.console import LOG
from cnncompress.text import plain

NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}

_held: dict[Path, tuple[int, int]] = {}  # process and thread


@contextmanager
def reserved(path: str | Path, force: bool = False) -> Iterator[None]:
    """As `writing`, where `check_output` has no objection."""
    check_output(path, force)
    with writing(resolve(path)):
        check_output(path, force)
        yield


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Be the only one who writes at `target`, a path without links, for as long as the block lasts.

    Blocks of one thread may be nested. RunError, at once, where somebody else is writing there; it says who. What a
    process that died has left does not count. Where the file system has no locks, a line on stderr says so.
    """
    me = (os.getpid(), threading.get_ident())
    if _held.get(target) == me:
        yield
        return
    path, holder = beside(target, "lock"), beside(target, "lock.json")
    made = [p for p in target.parents if not p.exists()]
    try:
        with os_errors(f"write {target}"):
            target.parent.mkdir(parents=True, exist_ok=True)
            lock = _acquire(path, holder, target)
        _held[target] = me
        try:
            _sign(holder)
            yield
        finally:
            del _held[target]
            for file in (holder, path):
                with suppress(OSError):
                    file.unlink()
            if lock is not None:
                lock.release()
    finally:
        for parent in made:
            with suppress(OSError):
                parent.rmdir()


def _acquire(path: Path, holder: Path, target: Path) -> FileLock | None:
    """The lock, held; None where the file system has none."""
    lock = FileLock(path)
    while True:
        # The last holder removes the file. Held open, its number is nobody else's: what is locked is what is there.
        pinned = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            lock.acquire(timeout=0)
            if _same(pinned, path):
                return lock
            lock.release()
        except Timeout:
            raise RunError(
                f"{target} is being written by {_who(holder)}; wait for it, or choose another name"
            ) from None
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in NO_LOCKS:
                raise
            LOG.warning(f"warning: the file system of {target} has no locks: write from one process only")
            return None
        finally:
            os.close(pinned)


def _same(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _sign(holder: Path) -> None:
    words = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
    about = {
        "host": platform.node(),
        "pid": os.getpid(),
        "command": shlex.join(words),
        "since": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
    }
    with suppress(OSError):  # the lock holds without it
        holder.write_bytes(json.dumps(about).encode())


def _who(holder: Path) -> str:
    """The process that holds a lock, in words."""
    try:
        about = json.loads(holder.read_bytes()[:10_000])
        host, pid, command, since = (plain(str(about[key]))[:200] for key in ("host", "pid", "command", "since"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"
    return f"process {pid} on {host} (`{command}`) since {since}"
