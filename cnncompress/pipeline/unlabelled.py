"""The report of a training on images alone: how near the network came to its original."""

from __future__ import annotations

from cnncompress.data import Data
from cnncompress.finetuning import FinetuneResult
from cnncompress.network.evaluate import Evaluation
from cnncompress.pipeline.opened import Opened
from cnncompress.pipeline.original import with_accuracy
from cnncompress.pipeline.tuned import add_notes, as_tuned, ending, last_row
from cnncompress.reporting import Report, Row

Accuracies = tuple[Evaluation | None, Evaluation | None]


def add_taught(report: Report, opened: Opened, result: FinetuneResult, data: Data, accuracies: Accuracies) -> None:
    """Add a network that was trained without labels to a run's rows, and how near it came to its original.

    `accuracies` on `data` are those before and after, None where there are no labels; they chose nothing.
    """
    before, after = accuracies
    last, rows = last_row(report, opened), report.rows[:-1]
    report.notes += [text for text in [told(result, data)] if text not in report.notes]
    if result.best_epoch == 0:  # it is the network that it was
        report.rows = [*rows, _measured(last, before, data)]
        return
    add_notes(report, opened)
    was = [] if last.kind == "finetuned" else [_measured(last, before, data)]
    report.rows = [*rows, *was, with_accuracy(as_tuned(last), after, data if data.labelled else None)]


def _measured(row: Row, accuracy: Evaluation | None, data: Data) -> Row:
    """A row with its accuracy on `data`; as it is where that has no labels."""
    return row if accuracy is None else with_accuracy(row, accuracy, data)


def told(result: FinetuneResult, data: Data) -> str:
    """What a training without labels changed on the validation images, in a line."""
    start, best = result.start, result.best
    text = (
        f"fine-tuning on images of {data.name} without labels: on {best.images} others the most probable class is the "
        f"original's for {start.top1:.2f} % → {best.top1:.2f} %, the answers diverge by {start.loss:.4f} → "
        f"{best.loss:.4f} nats an image, {ending(result)}"
    )
    return f"{text}; {result.note}" if result.note else text
