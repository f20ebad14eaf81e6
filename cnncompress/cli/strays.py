"""What is raised where nobody can catch it, in finalizers and in threads: a line at most, and no traceback."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

from cnncompress.terminal import console
from cnncompress.terminal.stops import forget, was_asked
from cnncompress.text import first_line

AGAIN_SECONDS = 0.05  # after which an interruption that a finalizer took comes again


def watch() -> None:
    """Have strays of this program told by lines."""
    sys.unraisablehook = _of_finalizer
    threading.excepthook = _of_thread


def _of_finalizer(stray: Any) -> None:
    """Say it with --verbose alone: it is about what is gone already. An interruption was meant for the program."""
    if issubclass(stray.exc_type, KeyboardInterrupt):
        forget()
        again = threading.Timer(AGAIN_SECONDS, _interrupt)
        again.daemon = True
        again.start()
    else:
        _say(console.VERBOSE, "a finalizer", stray)


def _interrupt() -> None:
    """Send SIGINT to the main thread, which wakes up by it; on Windows it hears of it when it next runs Python."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:
        signal.raise_signal(signal.SIGINT)


def _of_thread(stray: Any) -> None:
    """Warn of it, unless the program is about to stop: threads then lose what they work on."""
    if not issubclass(stray.exc_type, SystemExit):
        _say(console.VERBOSE if was_asked() else console.QUIET, "a thread", stray)


def _say(level: int, where: str, stray: Any) -> None:
    what = "" if stray.exc_value is None else f": {first_line(stray.exc_value)}"
    console.LOG.log(level, "warning: %s raised %s%s", where, stray.exc_type.__name__, what)
