"""The JSON files of a run, read by schema and without torch: no network is built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cnncompress.chains.plan_schema import StoredPlan
from cnncompress.errors import RunError
from cnncompress.files.place import FORMAT, INFO, METRICS, PLAN
from cnncompress.files.reading import MalformedError, Schema, check, checksum, read_json
from cnncompress.files.schemas import Info, Metrics
from cnncompress.runs.snapshot import Snapshot


def read_info(files: Snapshot) -> dict[str, Any]:
    """The run.json of a run; RunError where it is damaged, or of another format."""
    path, info = files.path, _read(files, INFO)
    version = info.get("format")
    if not isinstance(version, int) or version < 1:
        raise RunError(f"{path} is damaged: {INFO} names no format")
    if version > FORMAT:
        raise RunError(f"{path} was written by a newer version of cnncompress (format {version}); upgrade cnncompress")
    with damage(path, INFO):
        check(Info, info)
    return info


def read_plan(files: Snapshot) -> dict[str, Any]:
    """The plan.json of a run; RunError where it is damaged."""
    return _read(files, PLAN, StoredPlan)


def read_metrics(files: Snapshot) -> dict[str, Any]:
    """The metrics.json of a run; RunError where it is damaged."""
    return _read(files, METRICS, Metrics)


def _read(files: Snapshot, name: str, schema: type[Schema] | None = None) -> dict[str, Any]:
    with damage(files.path, name):
        return read_json(files.file(name), schema)


def check_sum(files: Snapshot, info: Mapping[str, Any], name: str) -> None:
    """RunError where a file is no longer the one that was written; runs of earlier versions have no checksums."""
    expected = info.get("sha256", {}).get(name)
    with damage(files.path, name):
        if expected is not None and checksum(files.file(name)) != expected:
            raise MalformedError("is not the file that was written with it: its checksum differs")


@contextmanager
def damage(path: str | Path, name: str) -> Iterator[None]:
    """Say which file of the run cannot be read or is not what it should be."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{path} is incomplete: {name} cannot be read ({error.strerror})") from error
    except MalformedError as error:
        raise RunError(f"{path} is damaged: {name} {error}") from error
