"""How long layers and chains take on this machine."""

from cnncompress.timing.setting import TimingSetting, cache_folder
from cnncompress.timing.table import LatencyTable, Timed

__all__ = ["LatencyTable", "Timed", "TimingSetting", "cache_folder"]
