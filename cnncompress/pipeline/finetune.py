"""`finetune`: train a run's network and publish the best weights in the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from cnncompress.data import Augmented, Data, check_augmentation, split
from cnncompress.errors import DataError, RunError, UsageError
from cnncompress.finetuning import (
    Checkpoints,
    FinetuneResult,
    FinetuneSettings,
    Lessons,
    Origin,
    finetune,
    is_main_process,
)
from cnncompress.names.schedules import cascades
from cnncompress.network.device import resolve_device
from cnncompress.network.evaluate import Evaluation, paired_error
from cnncompress.network.memory_format import memory_format_of, to_memory_format
from cnncompress.pipeline.asked import ImagesAsked, NetworkAsked, TrainingAsked
from cnncompress.pipeline.cascade import add_steps
from cnncompress.pipeline.classes import class_changes
from cnncompress.pipeline.images import evaluate_on, held_out, open_data
from cnncompress.pipeline.opened import Opened, is_program, open_run, with_code
from cnncompress.pipeline.original import original_network, with_accuracy
from cnncompress.pipeline.rows import recorded
from cnncompress.pipeline.training import TrainingPlace, origin_of, training_in
from cnncompress.pipeline.tuned import add_notes, as_tuned, ending, last_row, program_note
from cnncompress.pipeline.unlabelled import add_taught, told
from cnncompress.reporting import Report
from cnncompress.runs import update_run
from cnncompress.terminal.console import LOG, Steps
from cnncompress.terminal.words import counted

VALIDATION_SHARE = 0.2


@dataclasses.dataclass
class Tuned:
    """The result of `train_run`."""

    report: Report
    out: Path
    summary: str


def train_run(
    run: Path,
    network: NetworkAsked,
    images: ImagesAsked,
    training: FinetuneSettings,
    asked: TrainingAsked,
    command: Sequence[str],
) -> Tuned | None:
    """Train the network of a run; None in the processes beside the first.

    With `asked.out` the run stays as it is, and a copy of it is made there once everything is known to fit. The run's
    network is replaced in one step at the end.
    """
    resolve_device(images.device)
    check_augmentation(asked.augment)
    steps = Steps(["load", "train", "save"])
    with training_in(run, asked) as place:
        steps.announce("load", f"load {run}")
        opened = open_run(run, network)
        report = recorded(opened)
        if is_program(opened):
            check_schedule(opened, training.schedule)
            LOG.warning(program_note(opened))
        data = open_training_data(images.spec, opened, training)
        original = find_original(opened, training)
        steps.announce("train", f"train {length(training)} on {images.spec}")
        accuracy = partial(evaluate_on, data=data, asked=images)
        before = accuracy(opened.model) if training.unlabelled else None
        result = _train(opened, data, training, place, images.device, original)
        if not is_main_process():
            return None
        steps.announce("save", f"save in {place.target}")
        after: Evaluation | None = result.best
        if training.unlabelled:
            after = accuracy(opened.model)
            add_taught(report, opened, result, data, (before, after))
        else:
            add_tuned(report, opened, result, data)
        if result.steps:
            add_steps(report, opened, result, training.unlabelled)
        report.changes = []  # of the network that it was
        if data.labelled:
            beside_original(report, opened, data, accuracy, after)
        info = {
            "finetune": {"command": list(command), **_record(training, asked, result), "data": images.spec},
            "held_out": held_out(opened, data),
        }
        place.ready()
        report.notes += update_run(place.target, opened.compressed, report.to_json(), info)
        return Tuned(report, place.target, told(result, data) if training.unlabelled else summary(result))


def _train(
    opened: Opened,
    data: Data,
    training: FinetuneSettings,
    place: TrainingPlace,
    device: str,
    original: nn.Module | None,
) -> FinetuneResult:
    """Train the network in place, with checkpoints in the place of the training."""
    if data.train is None:
        raise DataError(f"{data.name} holds no training images")
    augment = place.asked.augment
    train = Augmented(data.train, opened.preprocessing, flip=data.flip, seed=training.seed, augment=augment)
    checkpoints = Checkpoints(place.folder, place.ready, {**origin_of(opened, data), "augmentation": augment})
    origin = None if original is None else Origin(original, opened.provenance.plan, data.train)
    teacher = original if training.distill != "none" else None
    lessons = Lessons(train, data.val, teacher, opened.example(), origin)
    return finetune(opened.model, lessons, training, checkpoints, device=device, resume=place.asked.resume)


def _record(training: FinetuneSettings, asked: TrainingAsked, result: FinetuneResult) -> dict[str, Any]:
    """The settings of a training as its run has them, with those that it found itself."""
    found = {} if result.steps else {"lr": result.lr, "freeze_bn": result.freeze_bn}  # a cascade has them in each step
    return {**dataclasses.asdict(training), **found, "augment": asked.augment}


def length(training: FinetuneSettings) -> str:
    """How long a training is, in words."""
    return counted(training.epochs, "epoch") + " in each step" * cascades(training.schedule)


def check_schedule(opened: Opened, schedule: str) -> None:
    """UsageError for a schedule that asks which layers are decomposed, which a program does not tell."""
    if schedule != "all":
        other = with_code(opened)
        remedy = f"give --schedule all, or {other.removeprefix('give ')}" if other else "give --schedule all"
        raise UsageError(
            f"--schedule {schedule} needs layers, which the stored program of {opened.weights} lacks; {remedy}"
        )


def find_original(opened: Opened, training: FinetuneSettings) -> nn.Module | None:
    """The original of a run, in the run's memory format, where the training needs it; RunError where it is gone."""
    asked = {
        f"--schedule {training.schedule}": (cascades(training.schedule), "give --schedule all or upper"),
        "--distill": (training.distill != "none", "leave out --distill"),
        "--until-drop": (training.until_drop is not None, "leave out --until-drop"),
    }
    needs = next(((flag, remedy) for flag, (needed, remedy) in asked.items() if needed), None)
    if needs is None:
        return None
    original = original_network(opened)
    if original is None:
        other = with_code(opened) if is_program(opened) else ""
        raise RunError(
            f"{needs[0]} needs the original of {opened.weights}, whose code or weights are missing, changed or were "
            f"never recorded; {f'{other}, or ' if other else ''}{needs[1]}"
        )
    return to_memory_format(original, memory_format_of(opened.model))


def open_training_data(spec: str | None, opened: Opened, training: FinetuneSettings) -> Data:
    """Images to train and to validate on; a flat folder is split, the same way every time."""
    data = open_data(spec, opened, "" if training.unlabelled else "fine-tuning without --unlabelled")
    if data is None:
        raise UsageError("nothing to train on; give --data FOLDER, cifar10:ROOT or digits")
    return split(data, VALIDATION_SHARE, training.seed)


def add_tuned(report: Report, opened: Opened, result: FinetuneResult, data: Data) -> None:
    """Add the fine-tuned network to a run's rows; the network that it was before takes its accuracy before training.

    A network that gained nothing has no row beside that one: it takes its place, and a note says so. Training changes
    no cost.
    """
    rows, start, best = report.rows, result.start, result.best
    last = last_row(report, opened)
    again, same = last.kind == "finetuned", (best.top1, best.top5) == (start.top1, start.top5)
    if same:
        what = f"loss {start.loss:.4f} → {best.loss:.4f}" if result.best_epoch else result.note
        said = f"fine-tuning on {data.name} gained nothing: top-1 {best.top1:.2f} % before and after, {what}"
        report.notes += [said] if said not in report.notes else []  # a training that is resumed says it again
    if result.best_epoch == 0:  # it is the network that it was
        report.rows = [*rows[:-1], with_accuracy(last, start, data)]
        return
    add_notes(report, opened)
    tuned = with_accuracy(as_tuned(last), best, data)
    before = [] if again or same else [with_accuracy(last, start, data)]
    report.rows = [*rows[:-1], *before, tuned]


def beside_original(
    report: Report,
    opened: Opened,
    data: Data,
    measure: Callable[[nn.Module], Evaluation | None],
    after: Evaluation | None,
) -> None:
    """Put the original's accuracy on the same images into a report, and what the newest network differs by from it.

    That is its standard error, and which classes it is in. `after` is what was measured of the newest: only where it
    lacks the answers, the network gives all of them once more. The report stays as it is where the original is not at
    hand.
    """
    rows = report.rows
    known = len(rows) > 1 and rows[0].kind == "original" and rows[-1].top1 is not None
    original = original_network(opened) if known else None
    if original is None:
        return
    before = measure(original)
    after = measure(opened.model) if after is None or after.answers is None else after
    newest = dataclasses.replace(rows[-1], top1_error=paired_error(before, after))
    report.rows = [with_accuracy(rows[0], before, data), *rows[1:-1], newest]
    report.changes = class_changes(newest.name, before, after, data)


def summary(result: FinetuneResult) -> str:
    """The change of accuracy by the training, in a line."""
    start, best = result.start, result.best
    text = f"top-1 {start.top1:.2f} % → {best.top1:.2f} % on {best.images} images, {ending(result)}"
    return f"{text}; {result.note}" if result.note else text
