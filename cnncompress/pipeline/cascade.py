"""What a cascade leaves in a run beside its weights: its steps, the errors of its fits, and what no longer holds."""

from __future__ import annotations

from cnncompress.correction.sequential import ADJUSTED
from cnncompress.finetuning import FinetuneResult
from cnncompress.pipeline.opened import Opened
from cnncompress.pipeline.tuned import ERRORS_OF_FIT, ERRORS_OF_STEPS
from cnncompress.reporting import Report, layer_rows
from cnncompress.reporting.steps import StepRow

AGREEMENT = "top-1 of the cascade's steps is the share of images with the original's most probable class"


def add_steps(report: Report, opened: Opened, result: FinetuneResult, unlabelled: bool) -> None:
    """Add the steps of a cascade to a run's report, and the errors of its fits where the network is the cascade's.

    Kernels of kept layers are then those of the original, or trained, and no longer refitted.
    """
    report.steps = [
        StepRow(
            *(number, step.layers, step.words, step.before.top1, step.decomposed.top1, step.tuned.top1),
            *(step.epochs, step.tuned.images),
        )
        for number, step in enumerate(result.steps, 1)
    ]
    report.notes += [AGREEMENT] if unlabelled and AGREEMENT not in report.notes else []
    if result.best_epoch == 0:
        return
    report.notes = [*(note for note in report.notes if note not in (ERRORS_OF_FIT, ERRORS_OF_STEPS)), ERRORS_OF_STEPS]
    known = opened.provenance
    known.errors.update(result.errors)
    for kept in (known.plan.kept, report.kept):
        kept.update({name: reason.removesuffix(ADJUSTED) for name, reason in kept.items()})
    report.layers = layer_rows(known.plan, known.errors)
