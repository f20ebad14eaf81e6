"""`finetune`: train a run's network and publish the best weights in the run."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from cnncompress.config import TuneSettings, merge
from cnncompress.console import Steps
from cnncompress.data import Augmented, Data, split
from cnncompress.errors import DataError, RunError, UsageError
from cnncompress.evaluation import resolve_device
from cnncompress.finetuning import FinetuneResult, FinetuneSettings, finetune, is_main_process
from cnncompress.pipeline.opening import (
    Opened,
    evaluate_on,
    held_out,
    make_row,
    need_layers,
    open_data,
    open_run,
    recorded,
)
from cnncompress.pipeline.original import measured_again, with_accuracy
from cnncompress.profiling import profile
from cnncompress.reporting import Report
from cnncompress.runs import copy_run, is_run, update_run

VALIDATION_SHARE = 0.2
CHECKPOINTS = "checkpoints"


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
    steps = Steps(["load", "train", "save"])
    steps.announce("load", f"load {run}")
    opened = open_run(run, settings)
    need_layers(opened, "train")
    report = recorded(opened)
    data = open_training_data(settings, opened)
    if data.train is None:
        raise DataError(f"{settings.data} holds no training images")
    train = Augmented(data.train, opened.preprocessing, flip=data.flip, seed=settings.seed)
    with training_in(run, settings) as target:
        steps.announce("train", f"train {training.epochs} epochs on {settings.data}")
        result = finetune(
            opened.model,
            train,
            data.val,
            training,
            target / CHECKPOINTS,
            device=settings.device,
            resume=settings.resume,
            example=opened.example(),
        )
        if not is_main_process():
            return None
        steps.announce("save", f"save in {target}")
        add_tuned(report, opened, result, data)
        again = partial(evaluate_on, data=data, settings=settings)
        report.rows[:1] = [measured_again(report.rows[0], opened, data, again)]
        info = {
            "finetune": {"command": command, **dataclasses.asdict(training), "data": settings.data},
            "held_out": held_out(opened, data),
        }
        report.notes += update_run(target, opened.model, report.to_json(), info)
    return Tuned(report, target, summary(result))


def open_training_data(settings: TuneSettings, opened: Opened) -> Data:
    """Images to train and to validate on; a flat folder is split, the same way every time."""
    data = open_data(settings, opened)
    if data is None:
        raise UsageError("nothing to train on; give --data FOLDER, cifar10:ROOT or digits")
    return split(data, VALIDATION_SHARE, settings.seed)


@contextmanager
def training_in(run: Path, settings: TuneSettings) -> Iterator[Path]:
    """The run to train in: the run itself, or a copy of it at `--out`, which goes again if the training never starts.

    Ctrl-C passes on with the words that tell how to go on.
    """
    target = settings.out or run
    last = target / CHECKPOINTS / "last.pt"
    made: list[Path] = []
    if target.resolve() != run.resolve():
        if settings.resume and not is_run(target):
            raise RunError(f"{target} is not a run to resume in; leave out --resume")
        if not settings.resume and is_main_process():
            made = [p for p in (target, *target.parents) if not p.exists()]
            copy_run(run, target, force=settings.force)
    before = _changed(last)
    try:
        yield target
    except BaseException as error:
        started = _changed(last) != before
        if made and not started:
            shutil.rmtree(made[0], ignore_errors=True)
            for parent in made[1:]:
                with suppress(OSError):
                    parent.rmdir()
        if isinstance(error, KeyboardInterrupt) and started:
            raise KeyboardInterrupt(
                f"interrupted; {target} has a checkpoint: go on with the same command and --resume"
            ) from None
        raise


def _changed(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.is_file() else None


def add_tuned(report: Report, opened: Opened, result: FinetuneResult, data: Data) -> None:
    """Add the fine-tuned network to a run's rows; the network that it was before takes its accuracy before training.

    Where no epoch was better there is no other network, and a note says so. A network that was fine-tuned before
    has one row still.
    """
    cost, rows = profile(opened.model, opened.example()), report.rows
    last = rows[-1] if rows else make_row(opened.name, "decomposed", cost, None, None)
    again = last.kind == "finetuned"
    if result.best_epoch == 0:
        report.notes.append(f"fine-tuning on {data.name} changed nothing: {result.note}")
        report.rows = [*rows[:-1], with_accuracy(last, result.start, data)]
        return
    name = last.name if again else f"{last.name}, fine-tuned"
    tuned = make_row(name, "finetuned", cost, result.best, data)
    kept = [] if again else [with_accuracy(last, result.start, data)]
    report.rows = [*rows[:-1], *kept, dataclasses.replace(tuned, latency=last.latency)]


def summary(result: FinetuneResult) -> str:
    """What the training did to the accuracy, in a line."""
    start, best = result.start, result.best
    text = f"top-1 {start.top1:.2f} % → {best.top1:.2f} % on {best.images} images, best of epoch {result.best_epoch}"
    return f"{text}; {result.note}" if result.note else text
