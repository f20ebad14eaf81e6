"""Make a pretrained CNN smaller and faster by decomposing its layers, and show what that cost."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cnncompress.lazy import lazily
from cnncompress.waiting import set_waiting

if TYPE_CHECKING:
    from cnncompress.api import compress, export, finetune, report
    from cnncompress.chains.plan import Budget, LayerPlan, Plan
    from cnncompress.chains.spec import ConvSpec
    from cnncompress.correction import Correction, decompose_in_order
    from cnncompress.data import load_data, make_loader
    from cnncompress.errors import CompressError, UsageError
    from cnncompress.finetuning import FinetuneResult, FinetuneSettings, attention_loss, distillation_loss, trainable
    from cnncompress.fitting import decompose
    from cnncompress.models import load_model
    from cnncompress.network.compressed import Compressed
    from cnncompress.network.evaluate import Evaluation, evaluate
    from cnncompress.network.preprocessing import Preprocessing
    from cnncompress.network.profile import profile
    from cnncompress.pipeline.int8 import Int8Settings
    from cnncompress.planning import Choice, plan
    from cnncompress.reporting import Report
    from cnncompress.reporting.render import render
    from cnncompress.runs import load, save
    from cnncompress.statistics import collect_statistics

set_waiting(os.environ)

__version__ = "0.1.0"

# The same names for use: imported when first asked for, so that `import cnncompress` does not wait for torch.
_HOME = {
    "Budget": "chains.plan",
    "Choice": "planning",
    "CompressError": "errors",
    "Compressed": "network.compressed",
    "ConvSpec": "chains.spec",
    "Correction": "correction",
    "Evaluation": "network.evaluate",
    "FinetuneResult": "finetuning",
    "FinetuneSettings": "finetuning",
    "Int8Settings": "pipeline.int8",
    "LayerPlan": "chains.plan",
    "Plan": "chains.plan",
    "Preprocessing": "network.preprocessing",
    "Report": "reporting",
    "UsageError": "errors",
    "attention_loss": "finetuning",
    "collect_statistics": "statistics",
    "compress": "api",
    "decompose": "fitting",
    "decompose_in_order": "correction",
    "distillation_loss": "finetuning",
    "evaluate": "network.evaluate",
    "export": "api",
    "finetune": "api",
    "load": "runs",
    "load_data": "data",
    "load_model": "models",
    "make_loader": "data",
    "plan": "planning",
    "profile": "network.profile",
    "render": "reporting",
    "report": "api",
    "save": "runs",
    "trainable": "finetuning",
}

__all__ = [
    "Budget",
    "Choice",
    "CompressError",
    "Compressed",
    "ConvSpec",
    "Correction",
    "Evaluation",
    "FinetuneResult",
    "FinetuneSettings",
    "Int8Settings",
    "LayerPlan",
    "Plan",
    "Preprocessing",
    "Report",
    "UsageError",
    "__version__",
    "attention_loss",
    "collect_statistics",
    "compress",
    "decompose",
    "decompose_in_order",
    "distillation_loss",
    "evaluate",
    "export",
    "finetune",
    "load",
    "load_data",
    "load_model",
    "make_loader",
    "plan",
    "profile",
    "render",
    "report",
    "save",
    "trainable",
]


__getattr__ = lazily(__name__, _HOME)


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted(__all__)
