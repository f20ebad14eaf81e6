"""The built-in networks. Every module of this package that registers one is found by itself."""

from __future__ import annotations

from cnncompress.models.builtin.base import BUILTIN, BuiltIn
from cnncompress.names.classes import import_all

import_all(__name__, __path__)

__all__ = ["BUILTIN", "BuiltIn"]
