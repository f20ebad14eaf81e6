"""What runs hold beside their measurements: how they were made, what was predicted, how they were trained."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cnncompress.errors import CompressError, RunError
from cnncompress.files.place import HISTORY, METRICS
from cnncompress.files.reading import MalformedError, parse_json, read_text
from cnncompress.reporting.rows import Report
from cnncompress.runs.record import read_info, read_metrics, read_plan
from cnncompress.runs.snapshot import snapshot
from cnncompress.text import plain_values

HISTORY_BYTES = 16 * 2**20


EPOCH = ("val_top1", "val_loss", "train_loss")


@dataclass(frozen=True)
class Epoch:
    """An epoch of a training, 0 before it: top-1 in percent and losses in nats an image, None where not known."""

    epoch: int
    val_top1: float | None = None
    val_loss: float | None = None
    train_loss: float | None = None


@dataclass(frozen=True)
class Evidence:
    """A run by its `path`: its own report, run.json, plan.json and the epochs of its training, as plain values."""

    path: str
    report: Report
    info: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[Epoch, ...] = ()

    @property
    def predicted_rise(self) -> float | None:
        """The sum of the predicted rises of the layers, None where a plan has none."""
        known = [value for value in self.plan.get("rises", {}).values() if value is not None]
        return sum(known) if known else None

    @property
    def commands(self) -> list[str]:
        """The commands that made the run, as a shell takes them."""
        made = [self.info.get("command", []), self.info.get("finetune", {}).get("command") or []]
        return [shlex.join(map(str, words)) for words in made if words]


def evidence_of(paths: Sequence[Path]) -> list[Evidence]:
    """The evidence of runs, read without building a network; RunError where one is damaged."""
    return [_evidence(path) for path in paths]


def _evidence(path: Path) -> Evidence:
    with snapshot(path) as files:
        info, plan, metrics = read_info(files), read_plan(files), read_metrics(files)
    try:
        report = Report.from_json(metrics)
    except CompressError as error:
        raise RunError(f"{path} is damaged: {METRICS}: {error}") from error
    return Evidence(str(path), report, plain_values(info), plain_values(plan), _history(path / HISTORY))


def _history(path: Path) -> tuple[Epoch, ...]:
    """The epochs of a training; none where there was none, RunError where its file is damaged."""
    if not path.exists():
        return ()
    try:
        lines = read_text(path, HISTORY_BYTES).splitlines()
        return tuple(_epoch(number, parse_json(line)) for number, line in enumerate(lines))
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error
    except MalformedError as error:
        raise RunError(f"{path} is damaged: it {error}; delete it") from error


def _epoch(number: int, values: Any) -> Epoch:
    """The epoch that line `number`, from 0 on, is of; those of a cascade, which begins anew each step, are counted."""
    known = values if isinstance(values, dict) else {}
    if not isinstance(epoch := known.get("epoch"), int):
        raise MalformedError("has a line that is no epoch")
    numbers = {key: float(value) for key in EPOCH if isinstance(value := known.get(key), int | float)}
    return Epoch(number if "cascade_step" in known else epoch, **numbers)
