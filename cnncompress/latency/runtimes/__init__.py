"""The runtimes. Every module of this package that registers a class is found by itself; none imports torch."""

from __future__ import annotations

import importlib
import pkgutil

from cnncompress.errors import CompressError, UsageError, nearest
from cnncompress.latency.runtimes.base import REGISTRY, LayerClock, Runtime, register

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def get_runtime(name: str) -> Runtime:
    """A registered runtime by name; UsageError for an unknown one."""
    if name not in REGISTRY:
        raise UsageError(f"unknown runtime '{name}' (known: {', '.join(sorted(REGISTRY))}){nearest(name, REGISTRY)}")
    return REGISTRY[name]


def check_available(name: str) -> None:
    """UsageError for an unknown runtime, CompressError for one that cannot be used here."""
    if reason := get_runtime(name).missing():
        raise CompressError(f"the runtime {name} is not available: {reason}")


__all__ = ["REGISTRY", "LayerClock", "Runtime", "check_available", "get_runtime", "register"]
