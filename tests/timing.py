"""Measured times that tests make up, and short ways to measure."""

from __future__ import annotations

from cnncompress.latency.clock import Rounds
from cnncompress.latency.setting import TimingSetting
from cnncompress.latency.timed import Latency

ONCE = Rounds(warmup=1, least=1, seconds=0.0)
FEW = Rounds(warmup=1, least=3, seconds=0.0)
HERE = TimingSetting(dtype="float32", threads=1, memory_format="contiguous")


def took(milliseconds: float, memory_format: str = "contiguous", p10: float | None = None) -> Latency:
    """What a network took on one CPU thread; its tenth percentile too where it counts."""
    setting = TimingSetting(dtype="float32", threads=1, memory_format=memory_format)
    return Latency(milliseconds, milliseconds if p10 is None else p10, milliseconds, setting)
