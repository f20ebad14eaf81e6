"""Writing runs: a compressed network, how it was made, and what was measured. Whole or absent, never half."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import warnings
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import cnncompress
from cnncompress.chains.plan_json import plan_to_json
from cnncompress.chains.plan_schema import StoredPlan
from cnncompress.chains.training import folded
from cnncompress.errors import CompressError, RunError, UsageError
from cnncompress.files.place import FILES, FORMAT, INFO, METRICS, MODEL, PLAN, PROGRAM, check_output, others, resolve
from cnncompress.files.reading import Schema, check, checksum, finite, parse_json
from cnncompress.files.regular import NotRegularError, kind_of
from cnncompress.files.schemas import Info, Metrics
from cnncompress.files.state import packed, plain_tensors
from cnncompress.files.tensorfile import load_tensors, save_tensors
from cnncompress.models import ModelSource
from cnncompress.models.classes import class_source
from cnncompress.models.sources import code_of, find_source, foreign_code
from cnncompress.network.compressed import Compressed, compressed, with_provenance
from cnncompress.network.inputs import input_dtype
from cnncompress.network.preprocessing import Preprocessing
from cnncompress.network.provenance import Provenance
from cnncompress.programs import write_program
from cnncompress.runs.rebuild import check_rebuild, comes_back
from cnncompress.runs.record import check_sum, damage, read_info
from cnncompress.runs.renewal import renewing
from cnncompress.runs.snapshot import Snapshot, snapshot
from cnncompress.terminal.console import LOG
from cnncompress.text import first_line, plain

INCOMPLETE = (
    "the run does not hold the whole network: {source} with the saved weights gives other outputs; keep every value "
    "that differs from build to build in a parameter, buffer or submodule"
)
PACKED = "{names} cannot be stored in a run; when it is loaded, they are as {source} builds them then"
AS_PROGRAM = (
    "{name} cannot be built again by the name of its class: the run holds it as an exported program, which runs and "
    "trains but cannot be decomposed further; to keep the architecture, pass save(..., source='path/file.py:factory')"
)
Side = Callable[[Path], None]  # writes a file at a path


def save_run(
    path: str | Path,
    small: Compressed,
    *,
    metrics: Mapping[str, Any],
    info: Mapping[str, Any] | None = None,
    force: bool = False,
    sides: Mapping[str, Side] | None = None,
) -> list[str]:
    """Write a network and its evidence as a run; lines on what could not go along.

    The network of a user's own code is stored as a program too, which runs without that code, where it exports.

    `info` adds to run.json: command, seed, data; keys of its own go under `extra`. `sides` are side products by file
    name: one that cannot be written is left out, and a line on stderr says so. With `force`, the files of a run that is
    there are replaced; whatever else is in its folder stays. UsageError where the network's provenance has no source.
    RunError where `check_output` refuses, where the network is no longer what its source and plan build, where somebody
    else is writing there, or where the system refuses; nothing is left behind then.
    """
    check_output(path, force)
    model, known = folded(small.network), _known(small)
    if known.source.kind != "program":
        check_rebuild(model, known)
    with renewing(path, force) as folder:
        notes = _write_model(folder, model, known)
        _write_json(folder / METRICS, metrics, Metrics)
        _write_json(folder / INFO, {**_new_info(), **_told(info), **_source_info(folder, known)}, Info)
        for name, write in (sides or {}).items():
            _write_side(folder / name, write, resolve(path) / name)
        kept = [name for name in others(resolve(path)) if name not in (sides or {})]
    if kept:
        LOG.info(f"kept in {path}, as they are no part of the run that was replaced: {', '.join(map(plain, kept))}")
    return notes


def update_run(
    path: str | Path,
    small: Compressed | None = None,
    metrics: Mapping[str, Any] | None = None,
    info: Mapping[str, Any] | None = None,
) -> list[str]:
    """Replace parts of a run in one step: the network, metrics.json, keys of run.json.

    Everything else stays (hard-linked); a program of the old network goes. Where `small` is the run's own program,
    its tensors become those of the network too. Returns and raises as `save_run` does.
    """
    notes: list[str] = []
    model, known = (None, None) if small is None else (folded(small.network), _known(small))
    if model is not None and known is not None and known.source.kind != "program":
        check_rebuild(model, known)
    with renewing(path, force=True) as folder, snapshot(path) as files:
        old = read_info(files)
        if model is not None and known is not None:
            if known.source.kind == "program":
                _write_program(folder, files, model, known)
                old = {**old, **_held_info(folder, known)}
            else:
                notes = _write_model(folder, model, known)
                old = {**old, **_source_info(folder, known)}
        if metrics is not None:
            _write_json(folder / METRICS, metrics, Metrics)
        _write_json(folder / INFO, {**old, **_told(info, old), "format": FORMAT}, Info)
        stale = {PROGRAM} if model is not None else set()
        for name in set(FILES) - stale - set(os.listdir(folder)):
            if name in files:
                files.link(name, folder / name)
    return notes


def copy_run(source: str | Path, target: str | Path, force: bool = False) -> None:
    """Make a second run with the same content, hard-linked where possible. Raises as `save_run` and `load_run` do.

    Files of a training or of the user are not copied; those at `target` stay.
    """
    with snapshot(source) as files, renewing(target, force) as folder:
        info = read_info(files)
        for name in FILES:
            if name in files:
                check_sum(files, info, name)
                files.link(name, folder / name)


def save(
    model: nn.Module | Compressed, path: str | Path, force: bool = False, source: ModelSource | str | None = None
) -> None:
    """Save a network, or what `compress` gives, as a run without measurements.

    `source` tells how to build the architecture of one that `load_model` did not load: a model name such as
    `path/file.py:factory`, or a ModelSource. By default it is the class of the network, where that can be built by its
    name; else the network is kept as an exported program, which runs and trains but is not decomposed again.
    Raises as `save_run` does, and CompressError where neither can be had.
    """
    small, unbuilt = with_provenance(model), False
    if isinstance(source, str):
        source = find_source(source)
    elif source is None and small.provenance.source is None:
        source = _own_class(small)
        unbuilt = source is None
        source = source or ModelSource("program", type(small.network).__qualname__)
    if source is not None:
        small = _from_source(small, source)
    save_run(path, small, metrics={"schema": 1, "rows": [], "layers": []}, force=force)
    if unbuilt:
        warnings.warn(AS_PROGRAM.format(name=type(small.network).__name__), stacklevel=2)


def _from_source(small: Compressed, source: ModelSource) -> Compressed:
    """The network, which says from now on how its architecture is built."""
    return compressed(small.network, dataclasses.replace(small.provenance, source=source))


def _own_class(small: Compressed) -> ModelSource | None:
    """The class of a network as its source, where that builds it again."""
    source = class_source(small.network)
    if source is None:
        return None
    try:
        check_rebuild(small.network, dataclasses.replace(small.provenance, source=source))
    except CompressError:
        return None
    return source


def _known(small: Compressed) -> Provenance:
    known = small.provenance
    if known.source is None:
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


def _told(info: Mapping[str, Any] | None, old: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Additions of a caller to run.json; keys that its schema lacks go under `extra`."""
    known = {key: value for key, value in (info or {}).items() if key in Info.model_fields}
    extra = {**(old or {}).get("extra", {}), **{k: v for k, v in (info or {}).items() if k not in known}}
    return {**known, "extra": extra} if extra else known


def _source_info(folder: Path, known: Provenance) -> dict[str, Any]:
    """Entries of run.json on the network in `folder`: its source, and the checksums of its files."""
    code = code_of(known.source)
    return {
        "format": FORMAT,
        "source": dataclasses.asdict(known.source),
        **_held_info(folder, known),
        "code": {str(code): checksum(code)} if code is not None else {},
    }


def _held_info(folder: Path, known: Provenance) -> dict[str, Any]:
    """Entries of run.json on the tensors in `folder`."""
    preprocessing = dataclasses.asdict(known.preprocessing) if known.preprocessing else None
    written = [folder / name for name in (MODEL, PROGRAM) if (folder / name).is_file()]
    return {"preprocessing": preprocessing, "sha256": {path.name: checksum(path) for path in written}}


def _write_json(path: Path, values: Mapping[str, Any], schema: type[Schema]) -> None:
    """Write what `read_json` reads after `schema`; RunError for anything else."""
    try:
        text = json.dumps(finite(values), indent=2, ensure_ascii=False)
        text = text.encode("utf-8", "replace").decode()  # a file name in a command may be of other bytes
        check(schema, parse_json(text))
    except (TypeError, ValueError) as error:
        raise RunError(f"{path.name} cannot hold these values: it {error}") from error
    path.write_text(text + "\n", encoding="utf-8")


def _write_side(path: Path, write: Side, old: Path) -> None:
    """Write a side product, or say why it is left out: nothing but a file, at `old`, is replaced by one."""
    try:
        if kind := kind_of(old):
            raise NotRegularError(old, kind)
        write(path)
    except (CompressError, OSError) as error:
        path.unlink(missing_ok=True)
        LOG.warning(f"warning: the run has no new {path.name}: {first_line(error)}")


def _write_model(folder: Path, model: nn.Module, known: Provenance) -> list[str]:
    _write_json(folder / PLAN, {**plan_to_json(known.plan), "errors": known.errors}, StoredPlan)
    state = model.state_dict(keep_vars=True)
    save_tensors(folder / MODEL, plain_tensors(state))
    if known.source.kind == "program":
        write_program(model, _example(model, _prepared(known)), folder / PROGRAM)
    code = foreign_code(known.source)
    if code is None or known.preprocessing is None:
        return []
    example = _example(model, known.preprocessing)
    notes = [] if comes_back(model, known, example) else [INCOMPLETE.format(source=known.source.name)]
    if others := packed(state):
        notes.append(PACKED.format(names=_listed(others), source=known.source.name))
    try:
        write_program(model, example, folder / PROGRAM)
    except CompressError as error:
        notes.append(f"the run needs {code}: the network cannot be stored as a program ({error})")
    return notes


def _listed(names: Collection[str]) -> str:
    return f"{next(iter(names))}{f' and {len(names) - 1} more' if len(names) > 1 else ''}"


def _write_program(folder: Path, files: Snapshot, program: nn.Module, known: Provenance) -> None:
    """Write the program of the run in `files`, and its tensors for the network, by the names that they have there.

    RunError where they do not fit: tensors that only the network has stay as they are.
    """
    with damage(files.path, MODEL):
        tensors = load_tensors(files.file(MODEL), f"{files.path / MODEL}")
    own = program.state_dict(keep_vars=True)
    if other := next((name for name, t in tensors.items() if own.get(name, t).shape != t.shape), None):
        raise RunError(f"{files.path} is damaged: {other} is of another shape in {PROGRAM} than in {MODEL}")
    save_tensors(folder / MODEL, {name: own.get(name, tensor) for name, tensor in tensors.items()})
    write_program(program, _example(program, _prepared(known)), folder / PROGRAM)


def _prepared(known: Provenance) -> Preprocessing:
    if known.preprocessing is None:
        raise UsageError(
            "the network cannot be built by the name of its class, and nothing says what its input is: load it with "
            "cnncompress.load_model, or pass save(..., source='path/file.py:factory')"
        )
    return known.preprocessing


def _example(model: nn.Module, preprocessing: Preprocessing) -> Tensor:
    shape = (2, preprocessing.channels, *preprocessing.size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(input_dtype(model))
