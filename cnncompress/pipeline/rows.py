"""The lines of a report's network table."""

from __future__ import annotations

import dataclasses

from cnncompress.chains.plan import Plan
from cnncompress.data import Data
from cnncompress.errors import CompressError, RunError
from cnncompress.network.costs import Profile
from cnncompress.network.evaluate import Evaluation
from cnncompress.pipeline.opened import Opened
from cnncompress.reporting import Report, Row
from cnncompress.reporting.rows import Kind


def recorded(opened: Opened) -> Report:
    """The measurements stored in a run, empty for a network by name; RunError where they are damaged."""
    run = opened.run
    if run is None:
        return Report()
    try:
        return Report.from_json(run.metrics)
    except CompressError as error:
        raise RunError(f"{opened.weights} is damaged: metrics.json: {error}") from error


def make_row(name: str, kind: Kind, cost: Profile, result: Evaluation | None, data: Data | None) -> Row:
    """One line of the network table."""
    if result is None:
        return Row.of(name, kind, cost)
    measured = {"top1": result.top1, "top5": result.top5, "images": result.images}
    return Row.of(name, kind, cost, **measured, data=data.fingerprint if data else None)


def planned_row(name: str, plan: Plan, cost: Profile, bytes_each: int) -> Row:
    """The line of a network with the chains of `plan`, and costs `cost` without; numbers take `bytes_each` bytes."""
    params = sum(after - before for before, after in (p.params for p in plan.layers.values()))
    indices = sum(stage.fixed_bytes for p in plan.layers.values() for stage in p.chain)
    macs = sum(after - before for before, after in (p.macs for p in plan.layers.values()))
    size = cost.size_bytes + bytes_each * params + indices
    planned = dataclasses.replace(cost, params=cost.params + params, macs=cost.macs + macs, size_bytes=size)
    return make_row(name, "decomposed", planned, None, None)
