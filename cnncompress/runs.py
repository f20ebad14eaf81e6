"""Runs on disk: a compressed network, how it was made, and what was measured. Whole or absent, never half."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

import cnncompress
from cnncompress.errors import RunError, UsageError
from cnncompress.factored import Provenance, attach, provenance
from cnncompress.models import ModelSource
from cnncompress.models.sources import find_source
from cnncompress.publish import check_parent, os_errors, recover, replacing
from cnncompress.rebuild import check_rebuild, fill, skeleton
from cnncompress.spec import Plan, Preprocessing
from cnncompress.specjson import plan_from_json, plan_to_json
from cnncompress.tensorfile import load_tensors, save_tensors

FORMAT = 1
INFO, PLAN, MODEL, METRICS = "run.json", "plan.json", "model.safetensors", "metrics.json"
CORE = (INFO, PLAN, MODEL, METRICS)


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


# --- where a run may stand ---


def is_run(path: str | Path) -> bool:
    """True where `path` is a run directory (it has a run.json)."""
    recover(_resolve(path))
    return os.path.isfile(os.path.join(path, INFO))


def check_output(path: str | Path, force: bool = False) -> None:
    """RunError unless a run can be written at `path`; call it before anything is computed.

    A run that is there is replaced only with `force`; a folder of other files, a file, and a folder that one stands
    in never are.
    """
    with os_errors(f"write {path}"):
        target = _resolve(path)
        recover(target)
        if target.is_dir():
            here = _resolve(".")
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


def _resolve(path: str | Path) -> Path:
    return Path(os.path.realpath(path))


# --- saving ---


def save_run(
    path: str | Path,
    model: nn.Module,
    *,
    metrics: Mapping[str, Any],
    info: Mapping[str, Any] | None = None,
    force: bool = False,
    carry: Sequence[str | Path] = (),
) -> None:
    """Write a network and its evidence as a run.

    The network needs a `Provenance` with a source (`cnncompress.load_model` and `decompose` leave one), else
    UsageError. `info` adds to run.json (command, seed, data); `carry` names files and folders of an older run to take
    along, hard-linked where possible. RunError where `check_output` refuses, where the network is no longer what its
    source and plan build, or where the system refuses to write; nothing is left behind then.
    """
    check_output(path, force)
    known = _known(model)
    check_rebuild(model, known)
    with replacing(_resolve(path), force) as folder:
        folder.mkdir()
        _take_along(folder, carry)
        _write_model(folder, model, known)
        _write_json(folder / METRICS, metrics)
        _write_json(folder / INFO, {**_new_info(), **(info or {}), **_source_info(known)})


def update_run(
    path: str | Path,
    model: nn.Module | None = None,
    metrics: Mapping[str, Any] | None = None,
    info: Mapping[str, Any] | None = None,
    carry: Sequence[str | Path] = (),
) -> None:
    """Replace parts of a run in one step: the network, metrics.json, keys of run.json, carried files and folders.

    Everything else stays (hard-linked). Raises as `save_run` and `load_run` do.
    """
    old = _read_info(path)
    check_output(path, force=True)
    target = _resolve(path)
    if model is not None:
        check_rebuild(model, _known(model))
    with replacing(target, force=True) as folder:
        folder.mkdir()
        _take_along(folder, carry)
        if model is not None:
            _write_model(folder, model, _known(model))
            old = {**old, **_source_info(_known(model))}
        if metrics is not None:
            _write_json(folder / METRICS, metrics)
        _write_json(folder / INFO, {**old, **(info or {}), "format": FORMAT})
        for item in sorted(target.iterdir()):
            if not os.path.lexists(folder / item.name):
                _link(item, folder / item.name)


def copy_run(source: str | Path, target: str | Path, force: bool = False) -> None:
    """Make a second run with the same content, hard-linked where possible. Raises as `save_run` and `load_run` do."""
    _read_info(source)
    check_output(target, force)
    with replacing(_resolve(target), force) as folder:
        folder.mkdir()
        for name in CORE:
            _link(_resolve(source) / name, folder / name)


def save(model: nn.Module, path: str | Path, force: bool = False, source: ModelSource | str | None = None) -> None:
    """Save a network as a run without measurements.

    `source` tells how to build the architecture of one that `load_model` did not load: a model name such as
    `path/file.py:factory`, or a ModelSource. Raises as `save_run` does.
    """
    if source is not None:
        source = find_source(source) if isinstance(source, str) else source
        attach(model, dataclasses.replace(provenance(model) or Provenance(), source=source))
    save_run(path, model, metrics={"schema": 1, "rows": [], "layers": []}, force=force)


def _known(model: nn.Module) -> Provenance:
    known = provenance(model)
    if known is None or known.source is None:
        raise UsageError(
            "the network does not say where it comes from; load it with cnncompress.load_model, "
            "or pass save(..., source='path/file.py:factory')"
        )
    return known


def _new_info() -> dict[str, Any]:
    versions = {
        "cnncompress": cnncompress.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
    }
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return {"versions": versions, "created": created, "command": [], "seed": None, "data": None}


def _source_info(known: Provenance) -> dict[str, Any]:
    preprocessing = dataclasses.asdict(known.preprocessing) if known.preprocessing else None
    return {"format": FORMAT, "source": dataclasses.asdict(known.source), "preprocessing": preprocessing}


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    try:
        text = json.dumps(values, indent=2, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise RunError(f"{path.name} cannot hold these values: {error}") from error
    path.write_text(text + "\n", encoding="utf-8")


def _take_along(folder: Path, items: Sequence[str | Path]) -> None:
    for item in map(Path, items):
        if not item.exists():
            raise RunError(f"{item} does not exist and cannot be taken along")
        if item.name not in CORE:
            _link(item, folder / item.name)


def _link(source: Path, target: Path) -> None:
    def link(one: str, other: str) -> None:
        try:
            os.link(one, other)
        except OSError:  # another file system, or one without hard links
            shutil.copy2(one, other)

    if source.is_dir():
        shutil.copytree(source, target, copy_function=link)
    else:
        link(str(source), str(target))


def _write_model(folder: Path, model: nn.Module, known: Provenance) -> None:
    _write_json(folder / PLAN, {**plan_to_json(known.plan), "errors": known.errors})
    save_tensors(folder / MODEL, model.state_dict(keep_vars=True))


# --- loading ---


def load_run(path: str | Path) -> LoadedRun:
    """Read a run: no data, no decomposition and no code of the run's own are needed.

    RunError in one line where it is missing, damaged, of a newer version, or where its network cannot be built.
    """
    info = _read_info(path)
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


# --- reading the files ---


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


def _read_info(path: str | Path) -> dict[str, Any]:
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
