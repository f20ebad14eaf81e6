"""Milliseconds as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one forward pass of a batch.

    `original` is the median of the original network that ran in turns with it, in the memory format it is fastest in.
    """

    median: float
    p10: float
    p90: float
    batch: int
    threads: int
    device: str
    dtype: str
    memory_format: str = "contiguous"
    original: float | None = None
