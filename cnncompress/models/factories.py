"""Networks that a user's own Python code makes: finding the code, giving it arguments, calling it."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from cnncompress.errors import CompressError, UsageError, nearest
from cnncompress.models.wrappers import unwrap
from cnncompress.network.copying import clone
from cnncompress.text import first_line

INSTALLED = tuple(str(Path(sysconfig.get_path(kind)).resolve()) for kind in ("stdlib", "purelib", "platlib"))
_ASIDE: dict[Path, dict[str, ModuleType]] = {}  # neighbours of a file whose names are those of other modules


def call_factory(name: str, kwargs: Mapping[str, Any]) -> nn.Module:
    """The network that `package.module:NAME` or `file.py:NAME` stands for: what a function or class returns, or itself.

    A file finds its neighbours, also by relative imports. UsageError for a name or arguments that do not exist or are
    missing, CompressError for code that fails or returns something else.
    """
    origin, _, function = name.rpartition(":")
    if not origin.endswith(".py"):
        with _same_folder():
            return _network(name, _find(_import_module(origin), origin, function), kwargs)
    path = Path(origin)
    if not path.is_file():
        raise UsageError(f"no such file: {path}")
    with _same_folder(), neighbourhood(path):
        return _network(name, _find(_import_file(path), origin, function), kwargs)


@contextmanager
def _same_folder() -> Iterator[None]:
    """Go back afterwards to the folder that the process works in, which somebody else's code may leave."""
    before = os.getcwd()
    try:
        yield
    finally:
        os.chdir(before)


def _network(name: str, made: Any, kwargs: Mapping[str, Any]) -> nn.Module:
    if isinstance(made, nn.Module):
        if kwargs:
            raise UsageError(f"{name} is a network, not a function: it takes no arguments such as {next(iter(kwargs))}")
        return unwrap(clone(made), name)
    _check_arguments(name, made, kwargs)
    try:
        model = made(**kwargs)
    except (Exception, SystemExit) as error:  # whatever somebody else's code raises
        raise CompressError(f"{name} raised {describe(error)}") from error
    if not isinstance(model, nn.Module):
        raise CompressError(f"{name} returned {type(model).__name__}, not a torch.nn.Module")
    model = unwrap(model, name)
    if any(p.device.type not in ("cpu", "meta") for p in model.parameters()):
        model.cpu()
    if any(t.is_inference() for t in model.state_dict().values() if isinstance(t, Tensor)):
        model = clone(model)  # made under torch.inference_mode: its tensors would not take part in gradients
    return model


def _find(module: ModuleType, origin: str, function: str) -> Any:
    """The callable of a dotted name in a module."""
    member: Any = module
    for part in function.split("."):
        member = getattr(member, part, None)
    if callable(member):
        return member
    names = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
    if member is not None:
        raise UsageError(f"{function} in {origin} is of type {type(member).__name__}, not a function or class")
    raise UsageError(f"{origin} has no function '{function}'{nearest(function, names)}")


def _check_arguments(name: str, factory: Callable[..., Any], kwargs: Mapping[str, Any]) -> None:
    """UsageError for arguments that a factory does not know, or that it needs and does not get."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # not every callable tells
        return
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    known = [p.name for p in named]
    takes = f"it takes {', '.join(known)}" if known else "it takes none"
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for key in kwargs:
            if key not in known:
                raise UsageError(f"{name} has no argument '{key}'{nearest(key, known)} ({takes})")
    if missing := [p.name for p in named if p.default is p.empty and p.name not in kwargs]:
        if missing[0] == "self":
            raise UsageError(f"{name} is a method: it needs an object to call it on; wrap it in a function")
        options = " ".join(f"--model-arg {key}=VALUE" for key in missing)
        raise UsageError(f"{name} needs the argument{'s' * (len(missing) > 1)} {', '.join(missing)}: give {options}")
    if any(p.kind is p.POSITIONAL_ONLY and p.default is p.empty for p in parameters):
        raise UsageError(f"{name} needs arguments without a name, which cannot be given; wrap it in a function")


# --- importing ---


def _import_module(name: str) -> ModuleType:
    _look_in(Path.cwd())  # a console script does not look there, unlike python -m
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # whatever somebody else's code raises
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise UsageError(f"no Python module '{name}' here or among the installed packages") from error
        raise CompressError(f"importing {name} raised {describe(error)}") from error


def _import_file(path: Path) -> ModuleType:
    """A file as a module: as `python FILE` sees it or, where it imports relatively, as a part of its package."""
    try:
        return _execute(path, f"_cnncompress_{path.stem}_{_digest(path)}")
    except ImportError as error:
        if "relative import" not in str(error):
            raise CompressError(f"importing {path} raised {describe(error)}") from error
    except (Exception, SystemExit) as error:  # whatever somebody else's code raises
        raise CompressError(f"importing {path} raised {describe(error)}") from error
    root = path.parent
    while (root / "__init__.py").is_file() and root.parent != root:
        root = root.parent
    package = ModuleType(f"_cnncompress_package_{_digest(root)}")
    package.__path__ = [str(root)]
    sys.modules[package.__name__] = package
    parts = path.relative_to(root).with_suffix("").parts
    try:
        return importlib.import_module(".".join([package.__name__, *parts]))
    except (Exception, SystemExit) as error:  # whatever somebody else's code raises
        raise CompressError(f"importing {path} raised {describe(error)}") from error


def _execute(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look the module up by name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _digest(path: Path) -> str:
    return hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _look_in(folder: Path) -> None:
    """Have imports look in a folder when they find nothing elsewhere."""
    if str(folder) not in sys.path and not ("" in sys.path and folder == Path.cwd()):
        sys.path.append(str(folder))


@contextmanager
def neighbourhood(path: Path) -> Iterator[None]:
    """Have imports find the neighbours of a file first, as `python FILE` does, whatever other modules are called.

    Modules of the same names that are loaded from elsewhere are back in their places afterwards, and are not touched
    where they belong to an installed package.
    """
    folder = path.parent
    own = _ASIDE.get(folder, {})
    names = {entry.name.removesuffix(".py") for entry in os.scandir(folder)} - {"__main__", "cnncompress"}
    named = {name: m for name, m in sys.modules.items() if name.partition(".")[0] in names}
    others = {name: module for name, module in named.items() if _from_elsewhere(module, folder)}
    for name in others:
        del sys.modules[name]
    sys.modules.update(own)
    arguments, sys.argv = sys.argv, [str(path)]
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.argv = arguments
        sys.path.remove(str(folder))
        if others:
            taken = {name.partition(".")[0] for name in others}
            own = {name: m for name, m in sys.modules.items() if name.partition(".")[0] in taken}
            for name in own:
                del sys.modules[name]
            _ASIDE[folder] = own
            sys.modules.update(others)
        for place in (folder, Path.cwd()):
            _look_in(place)


def _from_elsewhere(module: ModuleType, folder: Path) -> bool:
    """Whether a module is neither in `folder` nor a part of Python or of an installed package."""
    own = getattr(module, "__dict__", {})  # some modules answer any other question with an object, as torch.classes
    places = [own.get("__file__"), *(own.get("__path__") or ())]
    paths = [str(Path(p).resolve()) for p in places if p]
    return bool(paths) and not any(place.startswith((str(folder) + os.sep, *INSTALLED)) for place in paths)


def describe(error: BaseException) -> str:
    """The type of an exception and the first line of its message."""
    kind = type(error).__name__
    return f"{kind}: {first_line(error)}" if str(error).strip() else kind
