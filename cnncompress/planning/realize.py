"""From a solution to a plan, and what that costs."""

from __future__ import annotations

from dataclasses import replace

from cnncompress.chains.plan import LayerPlan, Narrowed, Plan
from cnncompress.network.operations import numbers_a_channel
from cnncompress.network.subject import Subject
from cnncompress.network.widths import narrowed_to
from cnncompress.planning.candidates import layer_plan
from cnncompress.planning.solution import Solution


def planned(subject: Subject, solution: Solution, metric: str, biased: bool) -> Plan:
    """The plan of a solution, with the rise of the error that is predicted for each change.

    That of a group is with the first layer that takes its channels.
    """
    plan = narrowed_to(subject.calls, solution.counts, biased)
    plan.metric = metric
    for cut, place in solution.places.items():
        if place < cut.whole:
            plan.rises[next(iter(cut.group.takers))] = cut.error(place)
    for name, candidate in solution.items():
        if candidate.plan is None or candidate.method is None:
            continue
        plan.layers[name] = candidate.plan
        plan.rises[name] = plan.rises.get(name, 0.0) + candidate.error
        if name in plan.narrowed:
            call = replace(subject.calls[name], spec=plan.narrowed[name].now)
            rank = candidate.method.rank(call.spec, candidate.plan.rank)
            plan.layers[name] = layer_plan(call, candidate.method, rank, biased, candidate.plan.lowering)
    return plan


def costs_of(subject: Subject, plan: Plan) -> dict[str, float]:
    """MACs and parameters of a network after a plan."""
    changes: list[LayerPlan | Narrowed] = [*plan.narrowed.values(), *plan.layers.values()]
    macs = subject.cost.total_macs + sum(after - before for before, after in (c.macs for c in changes))
    params = subject.cost.params + sum(after - before for before, after in (c.params for c in changes))
    for name, count in plan.channels.items():
        module = subject.network.get_submodule(name)
        have = numbers_a_channel(module)
        params -= sum(have - count for p in module.parameters(recurse=False) if have and p.shape == (have,))
    return {"macs": float(macs), "params": float(params)}
