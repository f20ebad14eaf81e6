"""The decompositions. Every module of this package that registers a class is found by itself."""

from __future__ import annotations

from typing import Any

from cnncompress.decompositions.base import REGISTRY, Decomposition
from cnncompress.errors import unknown
from cnncompress.names.classes import import_all

import_all(__name__, __path__)


def get_method(name: str, **options: Any) -> Decomposition:
    """A registered decomposition by name; UsageError for an unknown one."""
    if name not in REGISTRY:
        raise unknown("method", name, sorted(REGISTRY), also=["auto"])
    return REGISTRY[name](**options)


__all__ = ["REGISTRY", "Decomposition", "get_method"]
