"""The place of a run on disk, and the files that it has."""

from __future__ import annotations

import os
import re
from pathlib import Path

from cnncompress.errors import RunError
from cnncompress.files.publish import check_parent, os_errors, recover
from cnncompress.files.reading import JSON_BYTES, parse_json
from cnncompress.files.regular import kind_of, open_regular

FORMAT = 1
INFO, PLAN, MODEL, METRICS = "run.json", "plan.json", "model.safetensors", "metrics.json"
PROGRAM = "network.pt2"  # the network of a user's code, as a program that runs without that code
CORE = (INFO, PLAN, MODEL, METRICS)
FILES = (*CORE, PROGRAM)  # what a run is; whatever else is in its folder belongs to a training or to the user
LAST, PREVIOUS, BEST, HISTORY = "last.pt", "previous.pt", "best.safetensors", "history.jsonl"  # of a training
SECOND = "second.safetensors"  # the best weights of every other step of a cascade


def half_written(path: Path) -> Path:
    """The temporary name of a training's file; a process that is killed leaves it there."""
    return path.with_name(f".{path.name}.tmp")


HALF_WRITTEN = frozenset(half_written(Path(name)).name for name in (LAST, PREVIOUS, BEST, SECOND, HISTORY))


def is_run(path: str | Path) -> bool:
    """True where `path` is a run directory (it has a run.json)."""
    recover(resolve(path))
    return os.path.isfile(os.path.join(path, INFO))


def default_place(name: str) -> Path:
    """The default folder of a network's run; a name read from a file leads nowhere but into `runs`."""
    return Path("runs") / (re.sub(r"[^\w.+=-]+", "_", name).lstrip(".")[:100] or "network")


def default_exploration(name: str) -> Path:
    """The default folder of what was explored of a network; see `default_place`."""
    return Path("explorations") / default_place(name).name


def check_run(path: str | Path) -> None:
    """RunError where there is no run at `path`."""
    if is_run(path):
        return
    if not os.path.exists(path):
        raise RunError(f"no run at {path}: there is no such folder; `cnncompress decompose` writes one")
    raise RunError(f"{path} is not a run: it has no {INFO}")


def check_output(path: str | Path, force: bool = False) -> None:
    """RunError unless a run can be written at `path`; call it before anything is computed.

    A run that is there is replaced only with `force`, and then only the files that make it one, see `FILES`: others
    stay. What else is there, and a folder that one stands in, is never replaced; nothing is written into another run.
    """
    with os_errors(f"write {path}"):
        target = resolve(path)
        recover(target)
        if target.is_dir():
            here = resolve(".")
            if target == here or target in here.parents:
                raise RunError(f"cannot write {path}: it contains the current folder; choose another name")
            if is_run(target) and not force:
                raise RunError(f"{path} already exists; choose another name or replace it with --force")
            if os.listdir(target) and not _is_ours(target):
                what = f"its {INFO} is not of this program" if is_run(target) else "not a run"
                raise RunError(f"{path} is a folder of other files ({what}) and is left alone; choose another name")
            for name in FILES:
                if kind := kind_of(target / name):
                    raise RunError(f"{target / name} is {kind}, and is not replaced; choose another name")
        elif os.path.lexists(target):
            raise RunError(f"cannot write {path}: it is {kind_of(target) or 'a file'}; choose another name")
        if around := next((folder for folder in target.parents if _is_ours(folder)), None):
            raise RunError(f"cannot write {path}: it is inside the run {around}; choose another name")
        check_parent(target)


def others(path: str | Path) -> list[str]:
    """The names in a folder that are not of `FILES`: what a training left there, and what the user put there."""
    return sorted(set(os.listdir(path)) - set(FILES)) if os.path.isdir(path) else []


def _is_ours(folder: Path) -> bool:
    """True where `folder` holds a run by the content of its run.json."""
    try:
        with open_regular(folder / INFO) as file:
            info = parse_json(file.read(JSON_BYTES).decode())
    except (OSError, ValueError):
        return False
    known = {"format": int, "source": dict, "versions": dict}
    return isinstance(info, dict) and all(isinstance(info.get(key), kind) for key, kind in known.items())


def resolve(path: str | Path) -> Path:
    """The path without links."""
    return Path(os.path.realpath(path))
