"""A progress bar for programs."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import Any

from tqdm import tqdm

from cnncompress.terminal.events import line_of

SECONDS_BETWEEN = 1.0  # of two lines of one bar


class EventBar(tqdm):  # type: ignore[type-arg]
    """A tqdm bar that `tell`s a line of JSON where another would be drawn: at most one a second, and at its end."""

    def __init__(self, items: Iterable[Any] | None, tell: Callable[[str], None], **options: Any) -> None:
        self.tell = tell
        self.told: float = -1
        super().__init__(items, file=io.StringIO(), mininterval=SECONDS_BETWEEN, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Tell how far it has come, once for each number; tqdm calls this when it would draw."""
        if self.n != self.told:
            self.told = self.n
            fields = {"name": self.desc, "done": self.n, "of": self.total, "unit": self.unit}
            self.tell(line_of({"event": "progress", **fields}))
