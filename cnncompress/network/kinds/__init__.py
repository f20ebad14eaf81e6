"""The kinds of layers that chains can stand in for, one file each. `KINDS` has them by the modules they describe."""

from __future__ import annotations

from cnncompress.names.classes import import_all
from cnncompress.network.kinds.base import (
    KINDS,
    LayerKind,
    called_with,
    dense_weight,
    is_layer,
    kind_of,
    known_kinds,
    register,
    spec_of,
    weight_of,
)
from cnncompress.network.kinds.conv2d import Conv2dKind
from cnncompress.network.kinds.linear import LinearKind

import_all(__name__, __path__)

__all__ = [
    "KINDS",
    "Conv2dKind",
    "LayerKind",
    "LinearKind",
    "called_with",
    "dense_weight",
    "is_layer",
    "kind_of",
    "known_kinds",
    "register",
    "spec_of",
    "weight_of",
]
