"""The cheapest network whose accuracy falls by no more than asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from cnncompress.chains.plan import Budget, Plan
from cnncompress.errors import CompressError, UsageError
from cnncompress.network.compressed import Compressed
from cnncompress.network.evaluate import Evaluation, paired_error
from cnncompress.pipeline.fit import Fitted
from cnncompress.pipeline.notes import Note, notes
from cnncompress.reporting.accuracy import change_words
from cnncompress.terminal.console import LOG
from cnncompress.terminal.events import event

TRIALS = 8  # networks that are made and evaluated
LOWEST_SHARE = 0.05  # share of the MACs below which no network is tried
NEAREST_SHARE = 0.01  # of the MACs: the next trial would be no other network to speak of


@dataclass(frozen=True)
class Found:
    """A network with its plan and accuracy, and what is to be said of how it was made."""

    plan: Plan
    made: Compressed
    result: Evaluation
    notes: tuple[Note, ...] = ()


def search(
    plan: Callable[[Budget], Plan],
    fit: Callable[[Plan], Fitted],
    measure: Callable[[nn.Module], Evaluation | None],
    max_drop: float,
    top1: float,
    original: Evaluation | None = None,
) -> Found:
    """The network of the fewest MACs that loses at most `max_drop` points of `top1`, by bisection of the budget.

    Losses have their standard errors where the hits of the `original` are known.

    CompressError where every network tried loses more, UsageError where no plan could be tried.
    """
    low, high, best, tried = LOWEST_SHARE, 1.0, None, []
    refused: UsageError | None = None
    for trial in range(1, TRIALS + 1):
        share = (low + high) / 2
        of_trial = event("trial", trial=trial, of=TRIALS, macs=share)
        LOG.info("trial %d of at most %d: %.3f of the MACs", trial, TRIALS, share, extra=of_trial)
        try:
            planned = plan(Budget(macs=share))
        except UsageError as error:  # no plan is as cheap
            low, refused = share, error
            continue
        if not planned.changes:
            high = share
            continue
        made = fit(planned)
        result = measure(made.network)
        if result is None:
            raise CompressError("no accuracy to compare with; give --data with labelled evaluation images")
        drop = top1 - result.top1
        tried.append(
            f"{planned.achieved['macs']:.3f} of the MACs: {change_words(drop, paired_error(original, result))}"
        )
        if drop <= max_drop:
            best, high = Found(planned, made.made, result, made.notes), share
        else:
            low = share
        if high - low < NEAREST_SHARE:
            break
    if refused is not None and not tried:
        raise refused
    if best is None:
        told = f": {', '.join(tried)}" if tried else ""
        raise CompressError(f"no network loses at most {max_drop:g} points of top-1{told}; give a larger --max-drop")
    said = notes(
        "search",
        f"points of top-1 lost at {'; '.join(tried)}",
        "the evaluation images chose this budget, so their accuracy is a little optimistic",
    )
    return Found(best.plan, best.made, best.result, (*best.notes, *said))
