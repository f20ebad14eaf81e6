"""The decompositions. Every module of this package that registers a class is found by itself."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from cnncompress.decompositions.base import REGISTRY, Decomposition
from cnncompress.errors import UsageError, nearest

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def get_method(name: str, **options: Any) -> Decomposition:
    """A registered decomposition by name; UsageError for an unknown one."""
    if name not in REGISTRY:
        known = ", ".join(sorted(REGISTRY))
        raise UsageError(f"unknown method '{name}' (known: auto, {known}){nearest(name, REGISTRY)}")
    return REGISTRY[name](**options)


__all__ = ["REGISTRY", "Decomposition", "get_method"]
