"""The signals that ask a program to stop: Ctrl-C, `kill` and what batch systems send, the end of a terminal."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Mapping
from typing import Any

AGAIN_SECONDS = 3.0  # within which a second signal is the first one's wish: a launcher repeats Ctrl-C, so do people


def stop_signals() -> tuple[signal.Signals, ...]:
    """SIGINT, SIGTERM and, unless it is ignored as after `nohup`, SIGHUP; all three are handled alike."""
    signals = (signal.SIGINT, signal.SIGTERM)
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is None or signal.getsignal(hangup) == signal.SIG_IGN:
        return signals
    return (*signals, hangup)


def handle(handlers: Mapping[signal.Signals, Any]) -> dict[signal.Signals, Any]:
    """Set what handles each signal; what did before. Off the main thread, where Python has no signals, nothing."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number, handler in handlers.items()}


_last: float | None = None  # when a signal came


def is_repeated() -> bool:
    """Whether the signal that is handled now only repeats one of the last `AGAIN_SECONDS`.

    That one is being obeyed, and another exception would break into the tidying up.
    """
    global _last
    now, before = time.monotonic(), _last
    _last = now
    return before is not None and now - before < AGAIN_SECONDS


def was_asked() -> bool:
    """Whether a signal to stop has come."""
    return _last is not None


def forget() -> None:
    """Have the next signal be the first one."""
    global _last
    _last = None
