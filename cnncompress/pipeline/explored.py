"""What an exploration has found so far, on disk: points, what was measured of them, and the key that they belong to."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cnncompress
from cnncompress.chains.plan import Budget
from cnncompress.errors import RunError
from cnncompress.files import schemas
from cnncompress.files.place import resolve
from cnncompress.files.publish import check_parent, os_errors, write_text
from cnncompress.files.reading import MalformedError, finite, read_json
from cnncompress.files.regular import kind_of
from cnncompress.pipeline.calibration import STATISTICS
from cnncompress.pipeline.known_plans import PLANS
from cnncompress.pipeline.work import Work
from cnncompress.reporting.curve import Measured, Point
from cnncompress.reporting.rows import Row, row_from_json, row_to_json
from cnncompress.statistics import statistics_key
from cnncompress.terminal.console import LOG
from cnncompress.terminal.words import counted
from cnncompress.text import plain_values

EXPLORATION = "exploration.json"
SCHEMA = 1


@dataclass
class Found:
    """Points by budget and the original's row, of the network and the settings that `key` stands for."""

    key: str
    name: str
    points: dict[Budget, Point] = field(default_factory=dict)
    original: Row | None = None


def key_of(work: Work) -> str:
    """A hash of all that plans and measurements depend on but the budgets: network, images, layers, fit, version."""
    job, data = work.job, work.data
    settings: dict[str, Any] = {
        "version": cnncompress.__version__,
        "choices": {name: repr(choice) for name, choice in work.choices.items()},
        "fit": repr(job.fit),
        "multiple": job.layers.multiple,
        "memory_format": job.memory_format,
        "evaluated": None if data is None else len(data.val),
    }
    return statistics_key(work.subject.network, "" if data is None else data.fingerprint, settings)


def check_place(place: Path) -> None:
    """RunError where no exploration can be kept: a file, or a folder of other files."""
    with os_errors(f"write {place}"):
        target = resolve(place)
        if os.path.lexists(target) and not target.is_dir():
            raise RunError(f"cannot write {place}: it is {kind_of(target) or 'a file'}; choose another name with --out")
        if target.is_dir() and set(os.listdir(target)) - {EXPLORATION, STATISTICS, PLANS}:
            raise RunError(f"{place} is a folder of other files and is left alone; choose another name with --out")
        check_parent(target / EXPLORATION)


def read_found(place: Path, key: str, name: str, force: bool) -> Found:
    """What was found before at a place; nothing where there is none, or where `force` replaces it.

    RunError where it belongs to another network, other images or settings, or is damaged.
    """
    path = place / EXPLORATION
    if force or not path.exists():
        return Found(key, name)
    try:
        values = plain_values(read_json(path, schemas.Explored))
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error
    except MalformedError as error:
        raise RunError(f"{path} is damaged: it {error}; replace it with --force") from error
    if values["key"] != key:
        raise RunError(
            f"{place} holds an exploration of another network, or with other images, settings or version; choose "
            "another place with --out, or replace it with --force"
        )
    points = [_point(entry) for entry in values["points"]]
    original = None if values.get("original") is None else row_from_json(values["original"])
    measured = sum(point.measured is not None for point in points)
    LOG.info("%s: goes on, %s and %s known", place, counted(len(points), "plan"), counted(measured, "measurement"))
    return Found(key, name, {point.budget: point for point in points}, original)


def write_found(place: Path, found: Found) -> None:
    """Replace the file as a whole."""
    values = {
        "schema": SCHEMA,
        "key": found.key,
        "name": found.name,
        "original": None if found.original is None else row_to_json(found.original),
        "points": [_entry(point) for point in found.points.values()],
    }
    write_text(place / EXPLORATION, json.dumps(finite(values), indent=2, ensure_ascii=False) + "\n")


def _entry(point: Point) -> dict[str, Any]:
    values = {key: getattr(point, key) for key in ("cost", "share", "rise", "layers", "refused")}
    measured = point.measured
    known = {} if measured is None else {"row": row_to_json(measured.row), "divergence": measured.divergence}
    return values | {"left": dict(point.left)} | known


def _point(values: dict[str, Any]) -> Point:
    row, divergence = values.get("row"), values.get("divergence")
    measured = None if row is None or divergence is None else Measured(row_from_json(row), divergence)
    told = {key: values[key] for key in ("cost", "share", "left", "rise", "layers", "refused") if key in values}
    return Point(**told, measured=measured)
