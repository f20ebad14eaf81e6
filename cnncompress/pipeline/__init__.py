"""The few functions that the command line and the Python API both call."""

from cnncompress.pipeline.decompose import Decomposed, run_decompose
from cnncompress.pipeline.finetune import Tuned, run_finetune
from cnncompress.pipeline.measure import run_evaluate, run_export, run_inspect, run_profile, run_report
from cnncompress.pipeline.opened import Opened, open_model

__all__ = [
    "Decomposed",
    "Opened",
    "Tuned",
    "open_model",
    "run_decompose",
    "run_evaluate",
    "run_export",
    "run_finetune",
    "run_inspect",
    "run_profile",
    "run_report",
]
