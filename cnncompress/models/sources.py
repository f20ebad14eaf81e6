"""Architectures without weights: what is needed to build a network again, and the building."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast

from torch import nn

from cnncompress.errors import CompressError, RunError, UsageError, nearest
from cnncompress.files.reading import MalformedError, check
from cnncompress.files.schemas import Arguments
from cnncompress.models.builtin import BUILTIN
from cnncompress.models.factories import call_factory, describe
from cnncompress.names.models import TIMM_PREFIX, unknown_model
from cnncompress.network.modes import evaluating
from cnncompress.text import quote

PROGRAM_ONLY = "it was opened as an exported program, which runs and trains but has no layers to replace"
LOCAL_NAME = re.compile(r"[A-Za-z0-9_.-]+")  # timm takes addresses and folders beside names: they hold : and /
AUXILIARY = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}


@dataclass(frozen=True)
class ModelSource:
    """The source of an architecture; enough to build it again without weights. JSON-ready by `asdict`.

    Of a `program` there is only the exported program of what `name` names, which has no layers to build.
    """

    kind: Literal["torchvision", "timm", "builtin", "factory", "program"]
    name: str
    kwargs: dict[str, Any] = field(default_factory=dict)


def list_models() -> list[str]:
    """The names of the built-in and of torchvision's classification networks."""
    return sorted([*BUILTIN, *_classifiers()])


def import_torchvision_models() -> ModuleType:
    """`torchvision.models`: a second to import, which other networks do without."""
    import torchvision.models

    return torchvision.models


def _classifiers() -> list[str]:
    """The names of torchvision's classification networks."""
    models = import_torchvision_models()
    return cast(list[str], models.list_models(module=models))


def find_source(name: str) -> ModelSource:
    """The source that a model name stands for; nothing is built. UsageError for an unknown name."""
    if name in BUILTIN:
        return ModelSource("builtin", name)
    if name.startswith(TIMM_PREFIX):
        timm, model = import_timm(), name.removeprefix(TIMM_PREFIX)
        if not LOCAL_NAME.fullmatch(model) or not timm.is_model(model):
            raise UsageError(f"timm has no model '{model}'{nearest(model, timm.list_models())}")
        return ModelSource("timm", model)
    origin, colon, function = name.rpartition(":")
    if colon and origin and all(part.isidentifier() for part in function.split(".")):
        if origin.endswith(".py"):
            origin = str(Path(os.path.expanduser(origin)).resolve())  # Path's own fails without a home
        return ModelSource("factory", f"{origin}:{function}")
    if name.endswith(".py"):
        raise UsageError(f"{name} names no function: give {name}:FUNCTION")
    if name in _classifiers():
        # The auxiliary heads are for training from nothing; evaluation never calls them.
        return ModelSource("torchvision", name, {"aux_logits": False} if name in AUXILIARY else {})
    raise unknown_model(name)


def model_name(source: ModelSource) -> str:
    """The name that `find_source` takes a source from; UsageError for a program, which has none."""
    if source.kind == "program":
        raise UsageError(PROGRAM_ONLY)
    return f"{TIMM_PREFIX}{source.name}" if source.kind == "timm" else source.name


def foreign_code(source: ModelSource) -> str | None:
    """The user's code that building a network runs, in words, or None where a library or this package builds it."""
    if source.kind != "factory":
        return None
    origin, _, function = source.name.rpartition(":")
    return f"the code of {'the file' if origin.endswith('.py') else 'the Python module'} {origin} ({function})"


def code_of(source: ModelSource) -> Path | None:
    """The file of a user's own code; None where it is not at hand, for a module, and for all other sources."""
    origin = source.name.rpartition(":")[0]
    return path if source.kind == "factory" and origin.endswith(".py") and (path := Path(origin)).is_file() else None


def is_gone(source: ModelSource) -> bool:
    """True where the file or the package of a user's code is not here. Nothing is imported."""
    origin = source.name.rpartition(":")[0]
    if origin.endswith(".py"):
        return code_of(source) is None
    package = origin.partition(".")[0]
    if any(Path(name).exists() for name in (package, f"{package}.py")):
        return False
    try:
        return importlib.util.find_spec(package) is None
    except (ImportError, ValueError):
        return True


def check_source(source: ModelSource) -> None:
    """UsageError unless a source names a registered network and arguments that only shape it, or the user's code."""
    if source.kind == "program":
        raise UsageError(PROGRAM_ONLY)
    if source.kind == "factory":
        package = source.name.rpartition(":")[0].partition(".")[0]
        if package in sys.stdlib_module_names:
            raise UsageError(f"{package} is a module of Python itself, which has no networks")
        return
    if not _registered(source):
        raise UsageError(f"{source.kind} has no network {quote(source.name)}")
    try:
        check(Arguments, source.kwargs)
    except MalformedError as error:
        raise UsageError(f"its arguments cannot be used: {source.name} {error}") from error


def _registered(source: ModelSource) -> bool:
    """Whether the name is that of a network, so that nothing else is ever called or looked up by it."""
    if source.kind == "builtin":
        return source.name in BUILTIN
    if source.kind == "timm":
        return LOCAL_NAME.fullmatch(source.name) is not None and import_timm().is_model(source.name)
    return source.kind == "torchvision" and source.name in _classifiers()


def build_architecture(source: ModelSource) -> nn.Module:
    """Build a network without its weights, in eval mode; fill it with `load_weights`.

    The parameters of torchvision and timm networks are on the meta device: nothing is allocated or initialised.
    Others are built as their functions build them. RunError where the architecture cannot be built any more.
    """
    try:
        return construct(source, empty=True)
    except CompressError as error:
        raise RunError(f"{source.name} cannot be built: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{source.name} cannot be built with {source.kwargs}: {describe(error)}") from error


def construct(source: ModelSource, *, empty: bool) -> nn.Module:
    """Build a network in eval mode; with `empty`, leave torchvision's and timm's parameters on the meta device."""
    check_source(source)
    kwargs = dict(source.kwargs)
    if source.kind == "builtin":
        return BUILTIN[source.name].build(**kwargs).eval()
    if source.kind == "factory":
        return evaluating(call_factory(source.name, kwargs))
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False) if empty else nullcontext():
        if source.kind == "timm":
            return import_timm().create_model(source.name, pretrained=False, **kwargs).eval()
        if source.name in AUXILIARY:
            kwargs["init_weights"] = not empty
        return import_torchvision_models().get_model(source.name, weights=None, **kwargs).eval()


def import_timm() -> ModuleType:
    """The timm package; CompressError where it is not installed."""
    try:
        import timm
    except ImportError as error:
        raise CompressError("timm is not installed: pip install 'cnncompress[timm]'") from error
    return timm
