"""The names of networks, checked without importing torch, so that a wrong one is answered at once."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path

from cnncompress.errors import CompressError, UsageError, nearest
from cnncompress.files.place import check_run, is_run

NETWORKS = Path(__file__).parents[1] / "models" / "builtin"
BUILTIN_NAMES = tuple(sorted({path.stem for path in NETWORKS.glob("*.py")} - {"__init__", "base"}))  # a file each
TIMM_PREFIX = "timm:"
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")  # of files of weights
KINDS = f"a torchvision name, {', '.join(BUILTIN_NAMES)}, timm:NAME, package.module:FUNCTION, file.py:FUNCTION or a run"
BUILDERS = re.compile(r"@register_model\((?:name=\"(\w+)\")?\)\n(?:(?!def ).*\n)*def (\w+)\(")


def check_name(name: str) -> None:
    """UsageError or RunError where `name` cannot be a model or a run; what passes may still turn out to be none."""
    if name in BUILTIN_NAMES or name.startswith(TIMM_PREFIX) or is_run(name):
        return
    if Path(name).is_dir():
        return None if _mentioned(name) else check_run(name)
    origin, colon, function = name.rpartition(":")
    if colon and origin and all(part.isidentifier() for part in function.split(".")):
        return _check_origin(origin)
    refuse_weights(name)
    if name.endswith(".py"):
        raise UsageError(f"{name} names no function: give {name}:FUNCTION")
    elif Path(name).exists():
        raise UsageError(f"{name} is a file, not a model ({KINDS}); weights go with --weights")
    elif "/" in name and not name.startswith("timm/"):
        check_run(name)
    elif not _mentioned(name):
        raise unknown_model(name)


def refuse_weights(name: str) -> None:
    """UsageError where a file of weights is given as the network."""
    if name.lower().endswith(SUFFIXES):
        raise UsageError(f"{name} is a file of weights: give a network as MODEL, and --weights {name}")


def is_path(weights: str) -> bool:
    """Whether a `--weights` value means a file rather than a name."""
    return "/" in weights or "\\" in weights or weights.lower().endswith(SUFFIXES) or Path(weights).exists()


def check_weights(weights: str) -> None:
    """CompressError where a file of weights is not there."""
    if is_path(weights) and not Path(weights).exists():
        remedy = "; nothing is downloaded: fetch it and give the file" if "://" in weights else ""
        raise CompressError(f"no such weights file: {weights}{remedy}")


def unknown_model(name: str) -> UsageError:
    """The error for a name that stands for nothing, with the nearest one that does."""
    if name.startswith("timm/"):
        return UsageError(f"unknown model '{name}'; did you mean '{TIMM_PREFIX}{name.removeprefix('timm/')}'?")
    for task in sorted({path.parent.name for path in _files("*/*.py")}):
        if name in _builders(f"{task}/*.py"):
            own = "file.py:FUNCTION, a function of your own that returns the network"
            if task == "segmentation":
                own = f"torchvision.models.{task}:{name} with --model-arg weights_backbone=null, or {own}"
            return UsageError(
                f"{name} is one of torchvision's networks for {task.replace('_', ' ')}; those by name are for "
                f"classification, whose images and accuracy are known: give {own}"
            )
    return UsageError(f"unknown model '{name}'{nearest(name, known_names())} ({KINDS})")


def known_names() -> list[str]:
    """The built-in networks and torchvision's."""
    return [*BUILTIN_NAMES, *_builders("*.py")]


def _check_origin(origin: str) -> None:
    """UsageError where a factory's file, or the package it is in, is not there."""
    if origin.endswith(".py"):
        if not Path(os.path.expanduser(origin)).exists():
            raise UsageError(f"no such file: {origin}")
        return
    if Path(os.path.expanduser(origin)).is_file():
        raise UsageError(f"{origin} is no file of Python source: put the function into one that ends in .py")
    top = origin.partition(".")[0]
    if top.isidentifier() and not Path(top).is_dir() and not Path(f"{top}.py").exists() and find_spec(top) is None:
        raise UsageError(f"no Python module '{origin}' here or among the installed packages")


def _files(pattern: str) -> list[Path]:
    """torchvision's files of networks; none where they cannot be seen."""
    spec = find_spec("torchvision")
    places = (spec.submodule_search_locations or ()) if spec else ()
    return [path for place in places for path in sorted(Path(place, "models").glob(pattern))]


def _builders(pattern: str) -> list[str]:
    """The functions in these files that torchvision registers as networks."""
    matches = [match for path in _files(pattern) for match in BUILDERS.findall(path.read_text(encoding="utf-8"))]
    return [given or function for given, function in matches]


def _mentioned(name: str) -> bool:
    """Whether a word of torchvision's files is `name`, as it is of every network there; True where none can be seen."""
    files, word = _files("*.py"), re.compile(rf"\b{re.escape(name)}\b")
    return not files or any(word.search(path.read_text(encoding="utf-8")) for path in files)
