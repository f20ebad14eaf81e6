"""What the JSON files of a run say, read by schema and without torch: no network is built."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cnncompress.errors import RunError
from cnncompress.reading import MalformedError, Schema, check, read_json
from cnncompress.runs.place import FORMAT, INFO, METRICS, PLAN, check_run
from cnncompress.schemas import Info, Metrics, StoredPlan


def read_info(path: str | Path) -> dict[str, Any]:
    """The run.json of a run; RunError where there is none, or one of another format."""
    check_run(path)
    info = _read(path, INFO)
    version = info.get("format")
    if not isinstance(version, int) or version < 1:
        raise RunError(f"{path} is damaged: {INFO} names no format")
    if version > FORMAT:
        raise RunError(f"{path} was written by a newer version of cnncompress (format {version}); upgrade cnncompress")
    with damage(path, INFO):
        check(Info, info)
    return info


def read_plan(path: str | Path) -> dict[str, Any]:
    """The plan.json of a run; RunError where it is damaged."""
    return _read(path, PLAN, StoredPlan)


def read_metrics(path: str | Path) -> dict[str, Any]:
    """The metrics.json of a run; RunError where it is damaged."""
    return _read(path, METRICS, Metrics)


def _read(path: str | Path, name: str, schema: type[Schema] | None = None) -> dict[str, Any]:
    with damage(path, name):
        return read_json(Path(path, name), schema)


@contextmanager
def damage(path: str | Path, name: str) -> Iterator[None]:
    """Say which file of the run cannot be read or is not what it should be."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{path} is incomplete: {name} cannot be read ({error.strerror})") from error
    except MalformedError as error:
        raise RunError(f"{path} is damaged: {name} {error}") from error
