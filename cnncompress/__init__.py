"""Make a pretrained CNN smaller and faster by decomposing its layers, and show what that cost."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Budget": "spec",
    "CompressError": "errors",
    "collect_statistics": "statistics",
    "ConvSpec": "spec",
    "Plan": "spec",
    "UsageError": "errors",
    "decompose": "fitting",
    "decompose_in_order": "correction",
    "load": "runs",
    "load_data": "data",
    "load_model": "models",
    "make_loader": "data",
    "plan": "planning",
    "Choice": "planning",
    "profile": "profiling",
    "save": "runs",
}

__all__ = [*sorted(_HOME), "__version__"]


def __getattr__(name: str) -> Any:
    """Import the public names on first use, so that `cnncompress --help` does not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'cnncompress' has no attribute '{name}'")
    return getattr(importlib.import_module(f"cnncompress.{_HOME[name]}"), name)
