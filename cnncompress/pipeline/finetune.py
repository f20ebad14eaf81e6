"""`finetune`: train a run's network and publish the best weights in the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cnncompress.config import ModelSettings, merge
from cnncompress.data import Augmented, Data, split
from cnncompress.errors import DataError, RunError, UsageError
from cnncompress.evaluate import resolve_device
from cnncompress.finetune import FinetuneResult, FinetuneSettings, finetune, is_main_process
from cnncompress.pipeline.opening import Opened, make_row, open_data, open_model
from cnncompress.profiling import profile
from cnncompress.report import Report
from cnncompress.runs import copy_run, is_run, update_run

VALIDATION_SHARE = 0.2


class TuneSettings(ModelSettings):
    """Everything `cnncompress finetune` can be told, beside the run."""

    schedule: str = "all"
    epochs: int = 1
    lr: float | None = None
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float | None = None
    precision: str = "auto"
    out: Path | None = None
    force: bool = False
    resume: bool = False


@dataclasses.dataclass
class Tuned:
    """What `run_finetune` did."""

    report: Report
    out: Path
    summary: str


def run_finetune(run: Path, config: Path | None, flags: Mapping[str, Any], command: list[str]) -> Tuned | None:
    """Train the network of a run; None in the processes beside the first.

    With `out` the run is copied there first and stays as it is. The run's network is replaced in one step at the end.
    """
    settings: TuneSettings = merge(TuneSettings, config, {**flags, "model": str(run)}, section="finetune")
    keys = {f.name for f in dataclasses.fields(FinetuneSettings)} & set(TuneSettings.model_fields)
    training = FinetuneSettings(**{k: getattr(settings, k) for k in keys})
    resolve_device(settings.device)
    opened = open_model(settings)
    if opened.run is None:
        raise RunError(f"{run} is not a run; `cnncompress decompose` writes one")
    data = open_training_data(settings, opened)
    if data.train is None:
        raise DataError(f"{settings.data} holds no training images")
    target = prepare_target(run, settings)
    train = Augmented(data.train, opened.preprocessing, flip=data.flip, seed=settings.seed)
    result = finetune(
        opened.model,
        train,
        data.val,
        training,
        target / "checkpoints",
        device=settings.device,
        resume=settings.resume,
        example=opened.example(),
    )
    if not is_main_process():
        return None
    report = tuned_report(opened, result, data)
    info = {"finetune": {"command": command, **dataclasses.asdict(training), "data": settings.data}}
    update_run(target, opened.model, report.to_json(), info)
    return Tuned(report, target, summary(result))


def open_training_data(settings: TuneSettings, opened: Opened) -> Data:
    """Images to train and to validate on; a flat folder is split, the same way every time."""
    data = open_data(settings, opened)
    if data is None:
        raise UsageError("nothing to train on; give --data FOLDER, cifar10:ROOT or digits")
    return split(data, VALIDATION_SHARE, settings.seed)


def prepare_target(run: Path, settings: TuneSettings) -> Path:
    """The run to train in: the run itself, or a copy of it at `--out`."""
    target = settings.out
    if target is None or target.resolve() == run.resolve():
        return run
    if settings.resume:
        if not is_run(target):
            raise RunError(f"{target} is not a run to resume in; leave out --resume")
    elif is_main_process():
        copy_run(run, target, force=settings.force)
    return target


def tuned_report(opened: Opened, result: FinetuneResult, data: Data) -> Report:
    """The run's rows with the fine-tuned network added; the decomposed row takes the accuracy before training."""
    if opened.run is None:
        raise RunError("a report needs a run")
    report = Report.from_json({**opened.run.metrics, "kept": opened.run.plan.kept})
    cost = profile(opened.model, opened.example())
    rows = [row for row in report.rows if row.kind != "finetuned"]
    again = len(rows) < len(report.rows)
    if rows and not again:
        start = make_row(rows[-1].name, rows[-1].kind, cost, result.start, data)
        rows[-1] = start
    name = rows[-1].name if rows else opened.name
    rows.append(make_row(f"{name}, fine-tuned", "finetuned", cost, result.best, data))
    report.rows = rows
    return report


def summary(result: FinetuneResult) -> str:
    """What the training did to the accuracy, in a line."""
    start, best = result.start, result.best
    text = f"top-1 {start.top1:.2f} % → {best.top1:.2f} % on {best.images} images, best of epoch {result.best_epoch}"
    return f"{text}; {result.note}" if result.note else text
