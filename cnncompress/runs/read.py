"""Reading runs: no data and no decomposition are needed, and no code that a run names is run without consent."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from cnncompress.errors import RunError
from cnncompress.factored import Provenance, attach
from cnncompress.models import ModelSource
from cnncompress.models.sources import code_of, foreign_code, is_gone
from cnncompress.programs import read_program
from cnncompress.reading import MalformedError, Schema, check, checksum, read_json
from cnncompress.rebuild import fill, skeleton
from cnncompress.runs.place import FORMAT, INFO, METRICS, MODEL, PLAN, PROGRAM, check_run
from cnncompress.schemas import Info, Metrics, StoredPlan
from cnncompress.spec import Plan, Preprocessing
from cnncompress.specjson import plan_from_json
from cnncompress.tensorfile import load_tensors
from cnncompress.text import first_line


@dataclass
class LoadedRun:
    """A run in memory: the network (eval mode, CPU, with its Provenance), its plan, and what the files say.

    `metrics` is metrics.json, `info` run.json, as plain values. `note` is a line on how it was loaded, mostly empty.
    """

    model: nn.Module
    plan: Plan
    metrics: dict[str, Any]
    info: dict[str, Any]
    preprocessing: Preprocessing | None
    note: str = ""


def load_run(path: str | Path, trust_code: bool = False) -> LoadedRun:
    """Read a run: no data and no decomposition are needed.

    A network of a Python file or module is built with `trust_code` only, as that runs its code. Without it, or where
    the code is not here, the network is the program that was stored with the run, if there is one: it can be run but
    neither decomposed nor trained. RunError in one line where there is none, and where the run is missing, damaged, of
    a newer version, or cannot be built.
    """
    info = read_info(path)
    source, preprocessing = ModelSource(**info["source"]), _preprocessing(info.get("preprocessing"))
    plan_json, metrics = _read(path, PLAN, StoredPlan), _read(path, METRICS, Metrics)
    try:
        plan = plan_from_json(plan_json)
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path} is damaged: {PLAN}: {first_line(error)}") from error
    errors = {name: error for name, error in plan_json.get("errors", {}).items() if error is not None}
    known = Provenance(source, preprocessing, plan, errors)
    if (code := foreign_code(source)) and (not trust_code or is_gone(source)):
        known = dataclasses.replace(known, source=ModelSource("program", source.name))
        model = _program(path, info, code, trust_code)
        note = f"{path} runs as its stored program, {PROGRAM}, without {code}"
    else:
        model, note = _build(path, info, known), _changed(path, info, source)
    attach(model.eval(), known)
    return LoadedRun(model, plan, metrics, info, preprocessing, note)


def _build(path: str | Path, info: Mapping[str, Any], known: Provenance) -> nn.Module:
    """The architecture with its chains and tensors."""
    model = skeleton(known, f"{path} cannot be loaded")
    tensors = load_tensors(Path(path, MODEL))
    _check_sum(path, info, MODEL)
    fill(model, tensors, f"{path} is damaged: {MODEL}")
    return model


def _program(path: str | Path, info: Mapping[str, Any], code: str, trust_code: bool) -> nn.Module:
    """The network that was stored as a program; RunError where there is none, with what would help."""
    if not Path(path, PROGRAM).is_file():
        if trust_code:
            raise RunError(f"{path} cannot be loaded: it needs {code}, which is not here")
        raise RunError(f"{path} needs {code}; to have it run, give --trust-code (trust_code=True)")
    if PROGRAM not in info.get("sha256", {}):
        raise RunError(f"{path} is damaged: {INFO} has no checksum of {PROGRAM}")
    _check_sum(path, info, PROGRAM)
    with _damage(path, PROGRAM):
        return read_program(Path(path, PROGRAM))


def _check_sum(path: str | Path, info: Mapping[str, Any], name: str) -> None:
    """RunError where a file is no longer the one that was written; runs of earlier versions have no checksums."""
    expected = info.get("sha256", {}).get(name)
    with _damage(path, name):
        if expected is not None and checksum(Path(path, name)) != expected:
            raise MalformedError("is not the file that was written with it: its checksum differs")


def _changed(path: str | Path, info: Mapping[str, Any], source: ModelSource) -> str:
    """A line where the file of a user's code is not what it was when the run was written, else nothing."""
    code = code_of(source)
    if code is None or info.get("code", {}).get(str(code)) in (None, checksum(code)):
        return ""
    return f"{code} has changed since {path} was written"


def load(path: str | Path, trust_code: bool = False) -> nn.Module:
    """The network of a run, in eval mode on the CPU; `trust_code` and errors are those of `load_run`."""
    return load_run(path, trust_code).model


def read_info(path: str | Path) -> dict[str, Any]:
    """The run.json of a run; RunError where there is none, or one of another format."""
    check_run(path)
    info = _read(path, INFO)
    version = info.get("format")
    if not isinstance(version, int) or version < 1:
        raise RunError(f"{path} is damaged: {INFO} names no format")
    if version > FORMAT:
        raise RunError(f"{path} was written by a newer version of cnncompress (format {version}); upgrade cnncompress")
    with _damage(path, INFO):
        check(Info, info)
    return info


def _read(path: str | Path, name: str, schema: type[Schema] | None = None) -> dict[str, Any]:
    with _damage(path, name):
        return read_json(Path(path, name), schema)


@contextmanager
def _damage(path: str | Path, name: str) -> Iterator[None]:
    """Say which file of the run cannot be read or is not what it should be."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{path} is incomplete: {name} cannot be read ({error.strerror})") from error
    except MalformedError as error:
        raise RunError(f"{path} is damaged: {name} {error}") from error


def _preprocessing(values: Mapping[str, Any] | None) -> Preprocessing | None:
    if values is None:
        return None
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return Preprocessing(**fields)
