"""Statistics of the layers of a network over calibration images."""

from cnncompress.statistics.cache import load_statistics, save_statistics, statistics_key
from cnncompress.statistics.collect import POSITIONS, collect_statistics

__all__ = [
    "POSITIONS",
    "collect_statistics",
    "load_statistics",
    "save_statistics",
    "statistics_key",
]
