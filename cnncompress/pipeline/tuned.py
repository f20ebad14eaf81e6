"""The row of a fine-tuned network in the report of its run, and the notes on it."""

from __future__ import annotations

import dataclasses

from cnncompress.finetuning import FinetuneResult
from cnncompress.network.profile import profile
from cnncompress.pipeline.opened import Opened, is_program, with_code
from cnncompress.reporting import Report, Row
from cnncompress.terminal.words import counted
from cnncompress.text import plain

ERRORS_OF_FIT = "relative errors of layers are those of their fit, before fine-tuning"
ERRORS_OF_STEPS = "relative errors of layers are those of their fit in the cascade, to weights fine-tuned before"


def last_row(report: Report, opened: Opened) -> Row:
    """The row of the network as it was opened, made where the run has none."""
    if report.rows:
        return report.rows[-1]
    return Row.of(opened.name, "decomposed", profile(opened.model, opened.example()))


def as_tuned(row: Row) -> Row:
    """The row of a network under the name that it has once it is fine-tuned. Training changes no cost."""
    name = row.name if row.kind == "finetuned" else f"{row.name}, fine-tuned"
    return dataclasses.replace(row, name=name, kind="finetuned")


def program_note(opened: Opened) -> str:
    """How the training of a program differs, in a line."""
    other = f"; to train the network itself, {with_code(opened)}" if with_code(opened) else ""
    return plain(
        "fine-tuning trains the stored program: the statistics of batch normalisation stay as they are, and dropout is "
        f"off{other}"
    )


def add_notes(report: Report, opened: Opened) -> None:
    """Add what is to be known of a network that was trained, once."""
    notes = [] if ERRORS_OF_STEPS in report.notes else [ERRORS_OF_FIT]
    notes += [program_note(opened)] if is_program(opened) else []
    report.notes += [text for text in notes if text not in report.notes]


def ending(result: FinetuneResult) -> str:
    """What the weights of a training are of, in words."""
    if not result.steps:
        return f"best of epoch {result.best_epoch}"
    epochs = counted(sum(step.epochs for step in result.steps), "epoch")
    return f"{counted(len(result.steps), 'step')} and {epochs}"
