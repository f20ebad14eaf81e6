"""How to build a network again that its user has loaded in a way of their own: by the name of its class."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

from torch import nn

from cnncompress.models.sources import ModelSource


def class_source(model: nn.Module) -> ModelSource | None:
    """The class of a network as a factory, where it can be imported by name and called without arguments; else None.

    Nothing is built: whether that gives the network's architecture is for the caller to see.
    """
    own = type(model)
    if own.__module__.startswith("torch."):  # a container, which is empty without what it was given
        return None
    module, name = sys.modules.get(own.__module__), own.__qualname__
    if module is None or not all(part.isidentifier() for part in name.split(".")) or _find(module, name) is not own:
        return None
    try:
        inspect.signature(own).bind()
    except (TypeError, ValueError):
        return None
    if own.__module__ != "__main__":
        return ModelSource("factory", f"{own.__module__}:{name}")
    file = getattr(module, "__file__", None)
    return ModelSource("factory", f"{Path(file).resolve()}:{name}") if file and file.endswith(".py") else None


def _find(module: object, name: str) -> object:
    for part in name.split("."):
        module = getattr(module, part, None)
    return module
