"""What calibration images tell about the layers of a network."""

from cnncompress.spec import LayerStatistics
from cnncompress.statistics.cache import load_statistics, save_statistics, statistics_key
from cnncompress.statistics.collect import POSITIONS, collect_statistics

__all__ = [
    "POSITIONS",
    "LayerStatistics",
    "collect_statistics",
    "load_statistics",
    "save_statistics",
    "statistics_key",
]
