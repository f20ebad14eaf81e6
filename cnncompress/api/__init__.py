"""The whole job as functions: of networks and images in memory, and of runs; the command line calls only these.

`compress`, `finetune`, `report` and `export` are what Python users call. The functions `run_*` do what the command of
that name does.
"""

from __future__ import annotations

from cnncompress.api.commands import (
    job_of,
    run_decompose,
    run_evaluate,
    run_explore,
    run_export,
    run_finetune,
    run_inspect,
    run_int8_export,
    run_page,
    run_profile,
    run_report,
)
from cnncompress.api.functions import compress, export, finetune, report
from cnncompress.latency.setting import TimingSetting
from cnncompress.latency.timed import Latency
from cnncompress.network.compressed import Compressed
from cnncompress.network.costs import Profile
from cnncompress.pipeline.decompose import Decomposed
from cnncompress.pipeline.explore import Explored
from cnncompress.pipeline.finetune import Tuned
from cnncompress.pipeline.int8 import Int8Asked, Int8Settings
from cnncompress.pipeline.latencies import layer_times
from cnncompress.pipeline.table import measured_table
from cnncompress.programs.measured import Int8Measured
from cnncompress.reporting.layer_times import LayerTime

__all__ = [
    "Compressed",
    "Decomposed",
    "Explored",
    "Int8Asked",
    "Int8Measured",
    "Int8Settings",
    "Latency",
    "LayerTime",
    "Profile",
    "TimingSetting",
    "Tuned",
    "compress",
    "export",
    "finetune",
    "job_of",
    "layer_times",
    "measured_table",
    "report",
    "run_decompose",
    "run_evaluate",
    "run_explore",
    "run_export",
    "run_finetune",
    "run_inspect",
    "run_int8_export",
    "run_page",
    "run_profile",
    "run_report",
]
