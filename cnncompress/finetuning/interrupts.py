"""Ctrl-C, and the other signals to stop, that wait for a consistent state."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cnncompress.terminal.stops import forget, handle, is_repeated, stop_signals


class Interrupts:
    """While entered, a signal of `stop_signals` raises KeyboardInterrupt: at once, or after a block of `hold`.

    One that only repeats another raises nothing.
    With `shared`, it never raises and only sets `requested`: processes that wait for each other have to stop
    together, so the caller spreads the word. Outside of the main thread, where Python has no signals, it does nothing.
    """

    def __init__(self, shared: bool = False) -> None:
        self.shared = shared
        self.requested = False
        self._held = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        forget()  # a signal that ended the training before is not this one's
        self._previous = handle(dict.fromkeys(stop_signals(), self._handle))
        return self

    def __exit__(self, *error: object) -> None:
        handle(self._previous)

    def _handle(self, number: int, frame: Any) -> None:
        self.requested = True
        if not is_repeated() and not self._held and not self.shared:
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
