"""Reading runs: no data, no decomposition and no code of the run's own are needed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from cnncompress.errors import RunError
from cnncompress.factored import Provenance, attach
from cnncompress.models import ModelSource
from cnncompress.rebuild import fill, skeleton
from cnncompress.runs.place import FORMAT, INFO, METRICS, MODEL, PLAN, is_run
from cnncompress.spec import Plan, Preprocessing
from cnncompress.specjson import plan_from_json
from cnncompress.tensorfile import load_tensors


@dataclass
class LoadedRun:
    """A run in memory: the network (eval mode, CPU, with its Provenance), its plan, and what the files say.

    `metrics` is metrics.json, `info` run.json, as plain values.
    """

    model: nn.Module
    plan: Plan
    metrics: dict[str, Any]
    info: dict[str, Any]
    preprocessing: Preprocessing | None


def load_run(path: str | Path) -> LoadedRun:
    """Read a run: no data, no decomposition and no code of the run's own are needed.

    RunError in one line where it is missing, damaged, of a newer version, or where its network cannot be built.
    """
    info = read_info(path)
    plan_json, metrics = _read_json(path, PLAN), _read_json(path, METRICS)
    try:
        plan = plan_from_json(plan_json)
        errors = dict(plan_json.get("errors", {}))
        source = ModelSource(**info["source"])
        preprocessing = _preprocessing(info.get("preprocessing"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{path} is damaged: {INFO} or {PLAN} lacks or garbles {_line(error)}") from error
    known = Provenance(source, preprocessing, plan, errors)
    model = skeleton(known, f"{path} cannot be loaded")
    fill(model, load_tensors(Path(path, MODEL)), f"{path} is damaged: {MODEL}")
    attach(model.eval(), known)
    return LoadedRun(model, plan, metrics, info, preprocessing)


def load(path: str | Path) -> nn.Module:
    """The network of a run, in eval mode on the CPU."""
    return load_run(path).model


def _read_json(path: str | Path, name: str) -> dict[str, Any]:
    try:
        values = json.loads(Path(path, name).read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"{path} is incomplete: {name} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise RunError(f"{path} is damaged: {name} is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise RunError(f"{path} is damaged: {name} holds no JSON object")
    return values


def read_info(path: str | Path) -> dict[str, Any]:
    """The run.json of a run; RunError where there is none, or one of another format."""
    if not is_run(path):
        if not os.path.exists(path):
            raise RunError(f"no run at {path}: there is no such folder; `cnncompress decompose` writes one")
        raise RunError(f"{path} is not a run: it has no {INFO}")
    info = _read_json(path, INFO)
    version = info.get("format")
    if not isinstance(version, int) or version < 1:
        raise RunError(f"{path} is damaged: {INFO} names no format")
    if version > FORMAT:
        raise RunError(f"{path} was written by a newer version of cnncompress (format {version}); upgrade cnncompress")
    return info


def _preprocessing(values: Mapping[str, Any] | None) -> Preprocessing | None:
    if values is None:
        return None
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    known = Preprocessing(**fields)
    if not (len(known.size) == 2 and all(isinstance(n, int) and n > 0 for n in known.size)):
        raise ValueError(f"the size {known.size}")
    return known


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]
