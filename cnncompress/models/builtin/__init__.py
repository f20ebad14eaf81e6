"""The built-in networks. Every module of this package that registers one is found by itself."""

from __future__ import annotations

import importlib
import pkgutil

from cnncompress.models.builtin.base import BUILTIN, BuiltIn

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["BUILTIN", "BuiltIn"]
