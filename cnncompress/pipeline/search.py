"""The cheapest network whose accuracy falls by no more than asked for."""

from __future__ import annotations

import dataclasses

from torch import nn

from cnncompress.chains.plan import Budget, Plan
from cnncompress.errors import CompressError, UsageError
from cnncompress.network.evaluate import Evaluation
from cnncompress.pipeline.compressor import Compressor
from cnncompress.reporting import Row
from cnncompress.terminal.console import LOG

TRIALS = 8  # networks that are made and evaluated
LOWEST = 0.05  # share of the MACs below which no network is tried


@dataclasses.dataclass
class Found:
    """A network with its plan and accuracy, and remarks on how it was made."""

    plan: Plan
    model: nn.Module
    result: Evaluation
    notes: list[str]


def search(compressor: Compressor, max_drop: float, original: Row) -> Found:
    """The network of the fewest MACs that loses at most `max_drop` points of top-1, by bisection of the budget.

    CompressError where every network tried loses more.
    """
    if original.top1 is None or compressor.data is None or original.data != compressor.data.fingerprint:
        raise CompressError("no accuracy to compare with: that of the original on these images is not known")
    low, high, best, tried = LOWEST, 1.0, None, []
    for trial in range(1, TRIALS + 1):
        share = (low + high) / 2
        LOG.info("trial %d of at most %d: %.3f of the MACs", trial, TRIALS, share)
        try:
            plan = compressor.plan(Budget(macs=share))
        except UsageError:  # no plan is as cheap
            low = share
            continue
        if not plan.layers:
            high = share
            continue
        model = compressor.fit(plan)
        result = compressor.measure(model)
        if result is None:
            raise CompressError("no accuracy to compare with; give --data with labelled evaluation images")
        drop = original.top1 - result.top1
        tried.append(f"{plan.achieved['macs']:.3f} of the MACs: {drop:+.2f}")
        if drop <= max_drop:
            best, high = Found(plan, model, result, list(compressor.notes)), share
        else:
            low = share
        if high - low < 0.01:
            break
    if best is None:
        told = f": {', '.join(tried)}" if tried else ""
        raise CompressError(f"no network loses at most {max_drop:g} points of top-1{told}; give a larger --max-drop")
    compressor.notes = best.notes
    best.notes.append(f"points of top-1 lost at {'; '.join(tried)}")
    best.notes.append("the evaluation images chose this budget, so their accuracy is a little optimistic")
    return best
