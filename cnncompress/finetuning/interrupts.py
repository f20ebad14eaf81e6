"""Ctrl-C, and the other signals to stop, that wait for a consistent state."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cnncompress.terminal.stops import stop_signals


class Interrupts:
    """While entered, a signal of `stop_signals` raises KeyboardInterrupt: at once, or after a block of `hold`.

    With `shared`, it never raises and only sets `requested`: processes that wait for each other have to stop
    together, so the caller spreads the word. Outside of the main thread, where Python has no signals, it does nothing.
    """

    def __init__(self, shared: bool = False) -> None:
        self.shared = shared
        self.requested = False
        self._held = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in stop_signals()}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        self.requested = True
        if not self._held and not self.shared:
            raise KeyboardInterrupt

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Raise KeyboardInterrupt after the block rather than within it."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self.requested and not self.shared:
            raise KeyboardInterrupt
