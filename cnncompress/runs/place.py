"""Where a run may stand, and which files it has."""

from __future__ import annotations

import os
from pathlib import Path

from cnncompress.errors import RunError
from cnncompress.publish import check_parent, os_errors, recover

FORMAT = 1
INFO, PLAN, MODEL, METRICS = "run.json", "plan.json", "model.safetensors", "metrics.json"
CORE = (INFO, PLAN, MODEL, METRICS)
PROGRAM = "network.pt2"  # the network of a user's code, as a program that runs without that code


def is_run(path: str | Path) -> bool:
    """True where `path` is a run directory (it has a run.json)."""
    recover(resolve(path))
    return os.path.isfile(os.path.join(path, INFO))


def check_run(path: str | Path) -> None:
    """RunError where there is no run at `path`."""
    if is_run(path):
        return
    if not os.path.exists(path):
        raise RunError(f"no run at {path}: there is no such folder; `cnncompress decompose` writes one")
    raise RunError(f"{path} is not a run: it has no {INFO}")


def check_output(path: str | Path, force: bool = False) -> None:
    """RunError unless a run can be written at `path`; call it before anything is computed.

    A run that is there is replaced only with `force`; a folder of other files, a file, and a folder that one stands
    in never are.
    """
    with os_errors(f"write {path}"):
        target = resolve(path)
        recover(target)
        if target.is_dir():
            here = resolve(".")
            if target == here or target in here.parents:
                raise RunError(f"cannot write {path}: it contains the current folder; choose another name")
            if is_run(target):
                if not force:
                    raise RunError(f"{path} already exists; choose another name or replace it with --force")
            elif any(os.scandir(target)):
                raise RunError(f"{path} is a folder of other files, not a run, and is left alone; choose another name")
        elif os.path.lexists(target):
            raise RunError(f"cannot write {path}: it is a file; choose another name")
        check_parent(target)


def resolve(path: str | Path) -> Path:
    """The path without links."""
    return Path(os.path.realpath(path))
