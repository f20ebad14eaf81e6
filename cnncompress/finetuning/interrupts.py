"""Ctrl-C that waits for a consistent state."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Interrupts:
    """While entered, SIGINT raises KeyboardInterrupt at once, but after the block where `hold` is in force.

    With `shared`, it never raises and only sets `requested`: processes that wait for each other have to stop
    together, so the caller spreads the word. Outside of the main thread, where Python has no signals, it does nothing.
    """

    def __init__(self, shared: bool = False) -> None:
        self.shared = shared
        self.requested = False
        self._held = False
        self._previous: Any = None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

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
