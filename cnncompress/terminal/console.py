"""Progress on stderr: lines and bars. Used as a library, it is silent."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cnncompress.errors import during
from cnncompress.text import plain_lines

LOG = logging.getLogger("cnncompress")
QUIET, NORMAL, VERBOSE = logging.WARNING, logging.INFO, logging.DEBUG


class Stderr(logging.Handler):
    """Whole lines on the stderr of the moment, above the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        line = plain_lines(self.format(record))
        if "tqdm" in sys.modules:
            sys.modules["tqdm"].tqdm.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)


def speak(level: int) -> None:
    """Say on stderr what is at or above `level`; of processes that torchrun started, the first only."""
    if not any(isinstance(handler, Stderr) for handler in LOG.handlers):
        LOG.addHandler(Stderr())
    LOG.propagate = False
    LOG.setLevel(level if is_main_process() else max(level, QUIET))


def is_main_process() -> bool:
    """True but for the processes that torchrun started beside the first: they write no files and print nothing."""
    return int(os.environ.get("RANK", 0)) == 0


def bar(items: Iterable[Any] | None = None, *, progress: bool = True, **options: Any) -> Any:
    """A tqdm bar, drawn on a terminal only, and not where `progress` is False or the lines are silenced."""
    from tqdm import tqdm

    hidden = not progress or LOG.level >= QUIET
    return tqdm(items, disable=True if hidden else None, **options)


class Steps:
    """The parts of a command: a line on stderr as each begins, and the seconds that each took.

    `expected` are the names of the parts in order, the same one more than once where it comes back. The time of a part
    within another is its own and not the outer one's.
    """

    def __init__(self, expected: Sequence[str] = ()) -> None:
        self.expected = tuple(expected)
        self.seconds: dict[str, float] = {}
        self._reached = 0
        self._open: list[str] = []
        self._began = self._mark = time.monotonic()

    @contextmanager
    def __call__(self, name: str, what: str = "") -> Iterator[None]:
        """Add the time that the block takes to part `name`; `what` it does is said where the part is expected."""
        self.announce(name, what or name)
        self._count()
        self._open.append(name)
        try:
            with during(what or name):
                yield
        finally:
            self._count()
            self._open.pop()

    def _count(self) -> None:
        """Give the time since the last change to the part that is open."""
        now = time.monotonic()
        if self._open:
            self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + now - self._mark
        self._mark = now

    def announce(self, name: str, what: str) -> None:
        """Say that part `name` begins, without taking its time."""
        since = clock(time.monotonic() - self._began)
        if name in self.expected[self._reached :]:
            self._reached = self.expected.index(name, self._reached) + 1
            LOG.info("step %d of %d: %s (%s)", self._reached, len(self.expected), what, since)
        else:
            LOG.debug("%s (%s)", what, since)

    def __str__(self) -> str:
        parts = [f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items()]
        return f"time: {', '.join(parts)}{peak_memory()}"


def peak_memory() -> str:
    """The most memory that the process held, in words; nothing where the system does not tell."""
    try:
        import resource
    except ImportError:  # not on Windows
        return ""
    scale = 2**30 if sys.platform == "darwin" else 2**20  # macOS gives bytes, Linux KiB
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"; peak memory {(_own_peak() or most) / scale:.2f} GiB"


def _own_peak() -> int:
    """KiB on Linux, 0 elsewhere. What `getrusage` tells there counts the peak of whoever started the process too."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def clock(seconds: float) -> str:
    """Elapsed time: 0:07, 12:30, 1:02:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
