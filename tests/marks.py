"""Marks for some of the values that a test runs over."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TypeVar

import pytest

T = TypeVar("T")


def with_slow(values: Iterable[T], slow: Collection[T]) -> list[object]:
    """The values in their order, those in `slow` marked as slow: the default run leaves them out."""
    return [pytest.param(value, marks=pytest.mark.slow) if value in slow else value for value in values]
