"""Architectures without weights: what is needed to build a network again, and the building."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import re
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torchvision
from accelerate import init_empty_weights
from torch import nn

from cnncompress.errors import CompressError, RunError, UsageError, nearest
from cnncompress.models.builtin import BUILTIN
from cnncompress.reading import MalformedError, check
from cnncompress.schemas import Arguments
from cnncompress.text import quote

TIMM_PREFIX = "timm:"
LOCAL_NAME = re.compile(r"[A-Za-z0-9_.-]+")  # timm takes addresses and folders beside names: they hold : and /
AUXILIARY = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}


@dataclass(frozen=True)
class ModelSource:
    """Where an architecture comes from; enough to build it again without weights. JSON-ready by `asdict`."""

    kind: Literal["torchvision", "timm", "builtin", "factory"]
    name: str
    kwargs: dict[str, Any] = field(default_factory=dict)


def list_models() -> list[str]:
    """The names of the built-in and of torchvision's classification networks."""
    return sorted([*BUILTIN, *torchvision.models.list_models(module=torchvision.models)])


def find_source(name: str) -> ModelSource:
    """What a model name stands for, without building it. UsageError for a name that stands for nothing."""
    if name in BUILTIN:
        return ModelSource("builtin", name)
    if name.startswith(TIMM_PREFIX):
        timm, model = import_timm(), name.removeprefix(TIMM_PREFIX)
        if not LOCAL_NAME.fullmatch(model) or not timm.is_model(model):
            raise UsageError(f"timm has no model '{model}'{nearest(model, timm.list_models())}")
        return ModelSource("timm", model)
    if name in list_models():
        # The auxiliary heads are for training from nothing; evaluation never calls them.
        return ModelSource("torchvision", name, {"aux_logits": False} if name in AUXILIARY else {})
    origin, colon, function = name.rpartition(":")
    if colon and origin and function.isidentifier():
        if origin.endswith(".py"):
            origin = str(Path(origin).expanduser().resolve())
        return ModelSource("factory", f"{origin}:{function}")
    if name.endswith(".py"):
        raise UsageError(f"{name} names no function: give {name}:FUNCTION")
    raise UsageError(
        f"unknown model '{name}'{nearest(name, list_models())} "
        f"(a torchvision name, {', '.join(BUILTIN)}, timm:NAME, package.module:FUNCTION, file.py:FUNCTION or a run)"
    )


def model_name(source: ModelSource) -> str:
    """The name that `find_source` takes a source from."""
    return f"{TIMM_PREFIX}{source.name}" if source.kind == "timm" else source.name


def foreign_code(source: ModelSource) -> str | None:
    """The user's code that building a network runs, in words, or None where a library or this package builds it."""
    if source.kind != "factory":
        return None
    origin, _, function = source.name.rpartition(":")
    return f"{function} of {'the file' if origin.endswith('.py') else 'the Python module'} {origin}"


def check_source(source: ModelSource) -> None:
    """UsageError unless a source names a registered network and arguments that only shape it, or the user's code."""
    if source.kind == "factory":
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
    return source.kind == "torchvision" and source.name in torchvision.models.list_models(module=torchvision.models)


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
        return _call_factory(source).eval()
    with init_empty_weights(include_buffers=False) if empty else nullcontext():
        if source.kind == "timm":
            return import_timm().create_model(source.name, pretrained=False, **kwargs).eval()
        if source.name in AUXILIARY:
            kwargs["init_weights"] = not empty
        return torchvision.models.get_model(source.name, weights=None, **kwargs).eval()


def import_timm() -> ModuleType:
    """The timm package; CompressError where it is not installed."""
    try:
        import timm
    except ImportError as error:
        raise CompressError("timm is not installed: pip install 'cnncompress[timm]'") from error
    return timm


def _call_factory(source: ModelSource) -> nn.Module:
    origin, _, function = source.name.rpartition(":")
    module = _import_file(Path(origin)) if origin.endswith(".py") else _import_module(origin)
    if not callable(factory := getattr(module, function, None)):
        names = [name for name, value in vars(module).items() if callable(value)]
        raise UsageError(f"{origin} has no function '{function}'{nearest(function, names)}")
    try:
        model = factory(**source.kwargs)
    except (Exception, SystemExit) as error:  # whatever somebody else's code raises
        raise CompressError(f"{source.name} raised {describe(error)}") from error
    if not isinstance(model, nn.Module):
        raise CompressError(f"{source.name} returned {type(model).__name__}, not a torch.nn.Module")
    return model


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"no such file: {path}")
    name = f"_cnncompress_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look the module up by name
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever somebody else's code raises
        del sys.modules[name]
        raise CompressError(f"importing {path} raised {describe(error)}") from error
    return module


def _import_module(name: str) -> ModuleType:
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # a console script does not look there, unlike python -m
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # whatever somebody else's code raises
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise UsageError(f"no Python module '{name}' here or among the installed packages") from error
        raise CompressError(f"importing {name} raised {describe(error)}") from error


def describe(error: BaseException) -> str:
    """The type of an exception and the first line of its message."""
    message = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
