"""Milliseconds as plain values."""

from __future__ import annotations

from dataclasses import dataclass

from cnncompress.latency.setting import TimingSetting


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one forward pass of a batch, and all of the setting they were measured in.

    `original` is the median of the original network that ran in turns with it, in the memory format it is fastest in.
    """

    median: float
    p10: float
    p90: float
    setting: TimingSetting
    original: float | None = None
