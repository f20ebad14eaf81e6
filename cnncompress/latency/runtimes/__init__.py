"""The runtimes. Every module of this package that registers a class is found by itself; none imports torch."""

from __future__ import annotations

from cnncompress.errors import CompressError, unknown
from cnncompress.latency.runtimes.base import REGISTRY, LayerClock, Runtime, register
from cnncompress.names.classes import import_all

import_all(__name__, __path__)


def get_runtime(name: str) -> Runtime:
    """A registered runtime by name; UsageError for an unknown one."""
    if name not in REGISTRY:
        raise unknown("runtime", name, sorted(REGISTRY))
    return REGISTRY[name]


def check_available(name: str) -> None:
    """UsageError for an unknown runtime, CompressError for one that cannot be used here."""
    if reason := get_runtime(name).missing():
        raise CompressError(f"the runtime {name} is not available: {reason}")


__all__ = ["REGISTRY", "LayerClock", "Runtime", "check_available", "get_runtime", "register"]
