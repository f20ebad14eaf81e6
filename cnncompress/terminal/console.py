"""Progress on stderr: lines and bars. Used as a library, it is silent."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cnncompress.errors import during
from cnncompress.terminal.events import EVENT, event, level_of, line_of, line_of_record, words_of
from cnncompress.text import plain_lines

LOG = logging.getLogger("cnncompress")
QUIET, NORMAL, VERBOSE = logging.WARNING, logging.INFO, logging.DEBUG
NOT_TAKEN = (OSError, ValueError)  # what a stream raises whose other end is gone, and one that is closed


class Stderr(logging.Handler):
    """Whole lines on the stderr of the moment: above the progress bars, or, as `events`, objects of JSON.

    Where stderr takes no more, as after its terminal is gone, lines are dropped and the work goes on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.events = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        if self.events:
            self.tell(line_of_record(record))
        elif "tqdm" in sys.modules and record.levelno < logging.ERROR and sys.stderr is not None:
            with suppress(*NOT_TAKEN):
                sys.modules["tqdm"].tqdm.write(plain_lines(self.format(record)), file=sys.stderr)
        else:
            self.tell(plain_lines(self.format(record)))

    def tell(self, line: str) -> None:
        """Write the line in one piece, as several threads may do."""
        if sys.stderr is not None:
            with suppress(*NOT_TAKEN):
                sys.stderr.write(f"{line}\n")
                sys.stderr.flush()


class LogFile(logging.FileHandler):
    """All that is said, and what --verbose would say, at the end of a file: a time, a level and one line each."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self.setLevel(EVENT)

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        return f"{when} {level_of(record)}: {words_of(record)}"

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (the name of the base class)
        """Say once that nothing more is written, where the file takes no more; the work goes on."""
        LOG.removeHandler(self)
        LOG.warning("warning: nothing more is written to %s: %s", self.baseFilename, sys.exc_info()[1])


def speak(level: int, events: bool = False) -> None:
    """Say on stderr what is at or above `level`, as lines or as `events`; of torchrun's processes, the first only."""
    handler = _speaker() or Stderr()
    LOG.addHandler(handler)
    LOG.propagate = False
    handler.events = events
    level = EVENT if events and level < QUIET else level
    handler.setLevel(level if is_main_process() else max(level, QUIET))
    _listen()
    if events:
        warnings.showwarning = _warn


def log_to(path: Path) -> None:
    """Write to the end of this file too, from now on. OSError where that cannot be done."""
    if is_main_process():
        LOG.addHandler(LogFile(path))
        _listen()


def stop_logging() -> None:
    """Close the files that are written to."""
    for handler in [h for h in LOG.handlers if isinstance(h, LogFile)]:
        LOG.removeHandler(handler)
        handler.close()
    _listen()


def error_line(message: str, code: int) -> str:
    """An error that ends the program with exit code `code`, as stderr has it."""
    speaker = _speaker()
    if speaker is None or not speaker.events:
        return f"error: {message}"
    return line_of({"event": "error", "code": code, "message": message})


def _speaker() -> Stderr | None:
    return next((handler for handler in LOG.handlers if isinstance(handler, Stderr)), None)


def _listen() -> None:
    """Have the logger take what the most talkative of its handlers says."""
    # NOTSET takes all in a handler, and in a logger what the root takes, which is warnings
    LOG.setLevel(min((max(handler.level, 1) for handler in LOG.handlers), default=logging.NOTSET))


def _warn(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    LOG.warning("%s: %s", category.__name__, message)


def is_main_process() -> bool:
    """True but for the processes that torchrun started beside the first: they write no files and print nothing."""
    return int(os.environ.get("RANK", 0)) == 0


def bar(items: Iterable[Any] | None = None, *, progress: bool = True, **options: Any) -> Any:
    """A tqdm bar, drawn on a terminal only, and not where `progress` is False or the lines are silenced.

    Where stderr holds events, a line about once a second takes its place.
    """
    speaker = _speaker()
    closed = sys.stderr is None or sys.stderr.closed
    hidden = not progress or closed or (speaker is not None and speaker.level >= QUIET)
    if speaker is not None and speaker.events and not hidden:
        from cnncompress.terminal.event_bar import EventBar

        return EventBar(items, tell=speaker.tell, **options)
    from tqdm import tqdm

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
            number, of = self._reached, len(self.expected)
            told = event("step", name=name, step=number, of=of, what=what)
            LOG.info("step %d of %d: %s (%s)", number, of, what, since, extra=told)
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
