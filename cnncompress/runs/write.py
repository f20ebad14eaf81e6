"""Writing runs: a compressed network, how it was made, and what was measured. Whole or absent, never half."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import cnncompress
from cnncompress.errors import CompressError, RunError, UsageError
from cnncompress.factored import Provenance, attach, provenance
from cnncompress.models import ModelSource
from cnncompress.models.sources import code_of, find_source, foreign_code
from cnncompress.programs import write_program
from cnncompress.publish import replacing
from cnncompress.reading import Schema, check, checksum, finite, parse_json
from cnncompress.rebuild import check_rebuild
from cnncompress.runs.place import CORE, FORMAT, INFO, METRICS, MODEL, PLAN, PROGRAM, check_output, resolve
from cnncompress.runs.record import read_info
from cnncompress.schemas import Info, Metrics, StoredPlan
from cnncompress.spec import Preprocessing
from cnncompress.specjson import plan_to_json
from cnncompress.tensorfile import save_tensors


def save_run(
    path: str | Path,
    model: nn.Module,
    *,
    metrics: Mapping[str, Any],
    info: Mapping[str, Any] | None = None,
    force: bool = False,
    carry: Sequence[str | Path] = (),
) -> list[str]:
    """Write a network and its evidence as a run; lines on what could not go along.

    The network of a user's own code is stored as a program too, which runs without that code, where it exports.

    The network needs a `Provenance` with a source (`cnncompress.load_model` and `decompose` leave one), else
    UsageError. `info` adds to run.json (command, seed, data); `carry` names files and folders of an older run to take
    along, hard-linked where possible. RunError where `check_output` refuses, where the network is no longer what its
    source and plan build, or where the system refuses to write; nothing is left behind then.
    """
    check_output(path, force)
    known = _known(model)
    check_rebuild(model, known)
    with replacing(resolve(path), force) as folder:
        folder.mkdir()
        _take_along(folder, carry)
        notes = _write_model(folder, model, known)
        _write_json(folder / METRICS, metrics, Metrics)
        _write_json(folder / INFO, {**_new_info(), **(info or {}), **_source_info(folder, known)}, Info)
    return notes


def update_run(
    path: str | Path,
    model: nn.Module | None = None,
    metrics: Mapping[str, Any] | None = None,
    info: Mapping[str, Any] | None = None,
    carry: Sequence[str | Path] = (),
) -> list[str]:
    """Replace parts of a run in one step: the network, metrics.json, keys of run.json, carried files and folders.

    Everything else stays (hard-linked); a program of the old network goes. Returns and raises as `save_run` does.
    """
    notes: list[str] = []
    old = read_info(path)
    check_output(path, force=True)
    target = resolve(path)
    if model is not None:
        check_rebuild(model, _known(model))
    with replacing(target, force=True) as folder:
        folder.mkdir()
        _take_along(folder, carry)
        if model is not None:
            notes = _write_model(folder, model, _known(model))
            old = {**old, **_source_info(folder, _known(model))}
        if metrics is not None:
            _write_json(folder / METRICS, metrics, Metrics)
        _write_json(folder / INFO, {**old, **(info or {}), "format": FORMAT}, Info)
        for item in sorted(target.iterdir()):
            stale = item.name == PROGRAM and model is not None
            if not stale and not os.path.lexists(folder / item.name):
                _link(item, folder / item.name)
    return notes


def copy_run(source: str | Path, target: str | Path, force: bool = False) -> None:
    """Make a second run with the same content, hard-linked where possible. Raises as `save_run` and `load_run` do."""
    read_info(source)
    check_output(target, force)
    with replacing(resolve(target), force) as folder:
        folder.mkdir()
        for name in (*CORE, PROGRAM):
            if name in CORE or (resolve(source) / name).is_file():
                _link(resolve(source) / name, folder / name)


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


def _source_info(folder: Path, known: Provenance) -> dict[str, Any]:
    """What run.json says of the network in `folder`: how it is built, and the checksums of all that goes into it."""
    preprocessing = dataclasses.asdict(known.preprocessing) if known.preprocessing else None
    written = [folder / name for name in (MODEL, PROGRAM) if (folder / name).is_file()]
    code = code_of(known.source)
    return {
        "format": FORMAT,
        "source": dataclasses.asdict(known.source),
        "preprocessing": preprocessing,
        "sha256": {path.name: checksum(path) for path in written},
        "code": {str(code): checksum(code)} if code is not None else {},
    }


def _write_json(path: Path, values: Mapping[str, Any], schema: type[Schema]) -> None:
    """Write what `read_json` reads after `schema`; RunError for anything else."""
    try:
        text = json.dumps(finite(values), indent=2, ensure_ascii=False)
        check(schema, parse_json(text))
    except (TypeError, ValueError) as error:
        raise RunError(f"{path.name} cannot hold these values: it {error}") from error
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


def _write_model(folder: Path, model: nn.Module, known: Provenance) -> list[str]:
    _write_json(folder / PLAN, {**plan_to_json(known.plan), "errors": known.errors}, StoredPlan)
    save_tensors(folder / MODEL, model.state_dict(keep_vars=True))
    code = foreign_code(known.source)
    if code is None or known.preprocessing is None:
        return []
    try:
        write_program(model, _example(model, known.preprocessing), folder / PROGRAM)
    except RunError:
        raise
    except CompressError as error:
        return [f"the run needs {code}: the network cannot be stored as a program ({error})"]
    return []


def _example(model: nn.Module, preprocessing: Preprocessing) -> Tensor:
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return torch.randn(2, 3, *preprocessing.size, generator=torch.Generator().manual_seed(0)).to(dtype)
