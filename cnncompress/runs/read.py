"""Reading runs: no data and no decomposition are needed, and no code that a run names is run without consent."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from cnncompress.chains.plan import Plan
from cnncompress.chains.plan_json import plan_from_json
from cnncompress.errors import RunError
from cnncompress.files.place import INFO, MODEL, PLAN, PROGRAM
from cnncompress.files.reading import checksum
from cnncompress.files.tensorfile import load_tensors
from cnncompress.models import ModelSource
from cnncompress.models.sources import code_of, foreign_code, is_gone
from cnncompress.network.modes import evaluating
from cnncompress.network.preprocessing import Preprocessing
from cnncompress.network.provenance import Provenance, attach
from cnncompress.programs import read_program
from cnncompress.runs.rebuild import fill, skeleton
from cnncompress.runs.record import check_sum, damage, read_info, read_metrics, read_plan
from cnncompress.runs.snapshot import Snapshot, snapshot
from cnncompress.text import first_line


@dataclass
class LoadedRun:
    """A run in memory: the network (eval mode, CPU), where it comes from, and what the files say.

    `metrics` is metrics.json, `info` run.json, as plain values. `note` is a line on how it was loaded, mostly empty.
    """

    model: nn.Module
    provenance: Provenance
    metrics: dict[str, Any]
    info: dict[str, Any]
    note: str = ""

    @property
    def plan(self) -> Plan:
        """What became of every layer."""
        return self.provenance.plan

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How images are prepared, where that is known."""
        return self.provenance.preprocessing


def load_run(path: str | Path, trust_code: bool = False) -> LoadedRun:
    """Read a run: no data and no decomposition are needed.

    A network of a Python file or module is built with `trust_code` only, as that runs its code. Without it, or where
    the code is not here, the network is the program that was stored with the run, if there is one: it can be run and
    trained but not decomposed. RunError in one line where there is none, and where the run is missing, damaged, of
    a newer version, or cannot be built.
    """
    while True:
        with snapshot(path) as files:
            try:
                run = _load(files, trust_code)
            except RunError:
                if files.holds():
                    raise
            else:
                if files.holds():
                    return run


def _load(files: Snapshot, trust_code: bool) -> LoadedRun:
    path, info = files.path, read_info(files)
    source, preprocessing = ModelSource(**info["source"]), _preprocessing(info.get("preprocessing"))
    plan_json, metrics = read_plan(files), read_metrics(files)
    try:
        plan = plan_from_json(plan_json)
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path} is damaged: {PLAN}: {first_line(error)}") from error
    errors = {name: error for name, error in plan_json.get("errors", {}).items() if error is not None}
    known = Provenance(source, preprocessing, plan, errors)
    if (code := foreign_code(source)) and (not trust_code or is_gone(source)):
        known = dataclasses.replace(known, source=ModelSource("program", source.name))
        model = _program(files, info, code, trust_code)
        note = f"{path} runs as its stored program, {PROGRAM}, without {code}"
    elif source.kind == "program":
        model, note = _program(files, info, "the code of the network", trust_code=True), ""
    else:
        model, note = _build(files, info, known), _changed(path, info, source)
    attach(evaluating(model), known)
    return LoadedRun(model, known, metrics, info, note)


def _build(files: Snapshot, info: Mapping[str, Any], known: Provenance) -> nn.Module:
    """The architecture with its chains and tensors."""
    path = files.path
    model = skeleton(known, f"{path} cannot be loaded")
    with damage(path, MODEL):
        tensors = load_tensors(files.file(MODEL), f"{path / MODEL}")
    check_sum(files, info, MODEL)
    fill(model, tensors, f"{path} is damaged: {MODEL}")
    return model


def _program(files: Snapshot, info: Mapping[str, Any], code: str, trust_code: bool) -> nn.Module:
    """The network that was stored as a program; RunError where there is none, with what would help."""
    path = files.path
    if PROGRAM not in files:
        if trust_code:
            raise RunError(f"{path} cannot be loaded: it needs {code}, which is not here")
        raise RunError(f"{path} needs {code}; to have it run, give --trust-code (trust_code=True)")
    if PROGRAM not in info.get("sha256", {}):
        raise RunError(f"{path} is damaged: {INFO} has no checksum of {PROGRAM}")
    check_sum(files, info, PROGRAM)
    with damage(path, PROGRAM):
        return read_program(files.file(PROGRAM))


def _changed(path: str | Path, info: Mapping[str, Any], source: ModelSource) -> str:
    """A line where the file of a user's code is not what it was when the run was written, else nothing."""
    code = code_of(source)
    if code is None or info.get("code", {}).get(str(code)) in (None, checksum(code)):
        return ""
    return f"{code} has changed since {path} was written"


def load(path: str | Path, trust_code: bool = False) -> nn.Module:
    """The network of a run, in eval mode on the CPU; `trust_code` and errors are those of `load_run`."""
    return load_run(path, trust_code).model


def _preprocessing(values: Mapping[str, Any] | None) -> Preprocessing | None:
    if values is None:
        return None
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return Preprocessing(**fields)
