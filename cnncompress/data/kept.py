"""The items of small sets, which stay in memory once they were made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from torch.utils.data import get_worker_info

T = TypeVar("T")


class Kept(Generic[T]):
    """What was made of the items of a set that is small enough to stay in memory.

    Worker processes keep nothing, as they end with an epoch.
    """

    def __init__(self) -> None:
        self.items: dict[int, T] = {}

    def item(self, index: int, make: Callable[[], T], fits: Callable[[T], bool]) -> T:
        """The item that is kept, or else what `make` gives; `fits` says of it whether a set of such items is small."""
        if index in self.items:
            return self.items[index]
        made = make()
        if fits(made) and get_worker_info() is None:
            self.items[index] = made
        return made
