"""The most accurate plan within a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cnncompress.chains.plan import Budget, Plan
from cnncompress.errors import UnreachableError, UsageError
from cnncompress.metrics import get_metric
from cnncompress.planning.alone import Alone, Change
from cnncompress.planning.candidates import Layer, spread
from cnncompress.planning.clocked import CLOCKINGS, EASINGS, Scaled, Sums, best_of
from cnncompress.planning.collection import Candidates, with_channels
from cnncompress.planning.cuts import Cut
from cnncompress.planning.joint import Prices, components
from cnncompress.planning.realize import costs_of, planned
from cnncompress.planning.selecting import CIRCLE, WHOLE
from cnncompress.planning.solution import Joint, Solution
from cnncompress.planning.solver.highs import Floats
from cnncompress.planning.solver.knapsack import solve

TRUSTED_FACTOR = 3.0  # the metric's own prediction is only corrected where it is off from the usual by more than this
LEAST_CORRECTION = 0.1  # a smaller correction is not worth another solution
LEAST_NATS = 1e-9  # an error or a divergence up to this says nothing about the ratio of the two
CALIBRATIONS = 2  # comparisons of the predictions with the answers, at most
SOLUTION_SECONDS = 20.0  # seconds for one solution
FINE_ROUNDS = 2  # further solutions among the ranks near those of the last one

NOTICED_SHARE = 0.02  # of the MACs: less does not keep a budget from being met
NAMES_SHOWN = 3  # modules in a message
STAYS = "the budget is met with less loss of accuracy when this layer stays"


@dataclass(frozen=True)
class Planner:
    """Tells the plan within any budget from what layers may become.

    The same budget has the same plan, whatever was asked before: only what is measured is kept between questions.
    """

    candidates: Candidates

    def plan(self, budget: Budget) -> Plan:
        """The most accurate plan within a budget; UsageError where no plan meets it."""
        return _Search(self.candidates, budget).plan()


class _Search:
    """The search for the plan within one budget, with the corrections that it makes on its way.

    With answers to compare with, what the metric predicts is corrected where it turns out to be far off for a layer
    alone. With a clock, the times of chains are corrected by what the whole network takes.
    """

    def __init__(self, candidates: Candidates, budget: Budget) -> None:
        if budget.latency is None:
            candidates = replace(candidates, times=None)
        elif candidates.times is None:
            raise UsageError("a budget of latency needs a table of measured times and the network's own time")
        else:
            candidates.times.table.learn(candidates.wanted, candidates.times.seconds)
        self.all, self.guide, self.cost = candidates, candidates.guide, candidates.subject.cost
        self.budget, self.times = budget, candidates.times
        self.table = None if self.times is None else Scaled(self.times.table)
        self.totals, self.references = candidates.totals, candidates.references
        self.layers = [_afresh(layer) for layer in candidates.layers]
        self.cuts = [replace(cut, factor=1.0) for cut in candidates.cuts]
        self.parts = components(self.layers, self.cuts)
        settled = {cut for part in self.parts for cut in part.cuts}
        self.circling = {name for cut in self.cuts if cut not in settled for name in cut.group.takers}
        self.alone = Alone(candidates)

    def plan(self) -> Plan:
        """See `Planner.plan`."""
        solution = self._rough()
        for _ in range(CALIBRATIONS if self.guide.answers is not None else 0):
            if not self._calibrate(solution):
                break
            solution = self._solve()
        solution = self._fine(solution)
        if self.times is None or self.times.clock is None:
            return self._told(solution)
        return self._clocked(solution, self.times.clock)

    def _rough(self) -> Solution:
        """The solution among ranks that are spread over all."""
        for layer in self.layers:
            for family in layer.families:
                family.chosen = spread(len(family.ranks))
        for cut in self.cuts:
            cut.spread()
        return self._solve()

    def _fine(self, solution: Solution) -> Solution:
        """A better one among the ranks around a solution."""
        for _ in range(FINE_ROUNDS):
            for layer in self.layers:
                candidate = solution[layer.name]
                if candidate.plan is not None:
                    layer.families[candidate.family].near(candidate.index)
            for cut, place in solution.places.items():
                cut.near(place)
            solution = self._solve()
        return solution

    def _clocked(self, solution: Solution, clock: Callable[[Plan], float]) -> Plan:
        """The plan whose predicted time the network takes, or else the best that was measured within the budget."""
        assert self.budget.latency is not None
        assert self.table is not None
        tried: list[Plan] = []
        for _ in range(CLOCKINGS):
            plan = self._told(solution)
            measured = clock(plan)
            corrected = self.table.corrected(self._sums(solution), measured)
            if corrected is None:
                return plan
            before, self.table = self.table, corrected
            plan.achieved["latency"] = measured / self.references["latency"]
            tried.append(plan)
            try:
                solution = self._eased(before)
            except UnreachableError:
                if (best := best_of(tried, self.budget.latency)) is None:
                    raise
                return best
        return best_of(tried, self.budget.latency) or self._told(solution)

    def _eased(self, reachable: Scaled) -> Solution:
        """The solution in the corrected times or, where none has the budget in them, in times nearer to those before.

        One measurement in a slow moment, or of chains that are slower than others, would end the search otherwise.
        """
        assert self.table is not None
        for _ in range(EASINGS):
            try:
                return self._fine(self._rough())
            except UnreachableError:
                self.table = self.table.eased(reachable)
        return self._fine(self._rough())

    def _sums(self, solution: Solution) -> Sums:
        """The milliseconds that make up what is predicted of a solution."""
        chains = sum(c.costs["latency"] for c in solution.values() if c.plan is not None)
        layers = sum(layer.keep(self.table).costs["latency"] for layer in self.layers)
        return Sums(solution.cost("latency") - chains, chains, layers, self.totals["latency"])

    def _told(self, solution: Solution) -> Plan:
        plan = planned(self.all.subject, solution, self.guide.metric, self.guide.centred)
        stays = {name: self._reason(name) for name in solution if name not in plan.changes}
        plan.kept = {name: why for name, why in self.all.kept.items() if name not in solution} | stays
        costs = costs_of(self.all.subject, plan)
        if "latency" in self.totals:
            costs["latency"] = self._fixed()["latency"] + solution.cost("latency")
            own = {layer.name: layer.keep(self.table).costs["latency"] for layer in self.layers}
            plan.times = {n: (own[n], one.costs["latency"]) for n, one in solution.items() if n not in plan.narrowed}
        plan.achieved = {cost: costs[cost] / total for cost, total in self.references.items()}
        return plan

    def _reason(self, name: str) -> str:
        """Why a layer that might change stays."""
        reason = self.all.kept.get(name) or with_channels(STAYS, self.all.whole.get(name))
        return with_channels(reason, WHOLE.format(CIRCLE) if name in self.circling else None)

    def _fixed(self) -> dict[str, float]:
        """What the rest of the network costs."""
        own = [layer.keep(self.table).costs for layer in self.layers]
        return {cost: total - sum(c[cost] for c in own) for cost, total in self.totals.items()}

    def _solve(self) -> Solution:
        names = list(self.budget.shares)
        options = {layer.name: layer.candidates(self.table) for layer in self.layers}
        fixed = self._fixed()
        limits = [share * self.references[n] - fixed[n] for n, share in self.budget.shares.items()]
        prices = Prices(names, self.table, self.guide.centred)
        solution, fronts = Joint(self.parts, options, prices, limits, SOLUTION_SECONDS).solve()
        if solution is None:
            raise self._refusal([front.cost for front in fronts], limits)
        return solution

    def _refusal(self, costs: Sequence[Floats], limits: Sequence[float]) -> UnreachableError:
        """That no plan meets the budget, and what can be had."""
        names, fixed = list(self.budget.shares), self._fixed()
        least = {n: sum(float(c[:, i].min()) for c in costs) + fixed[n] for i, n in enumerate(names)}
        shares = {n: self._share(n, value) for n, value in least.items()}
        reach = ", ".join(f"{n}={share:.3f}" for n, share in shares.items())
        both = f", each alone, and together to {self._together(names, costs)}" if len(names) > 1 else ""
        told = f"these layers and methods go down to {reach}{both}{self._held()}"
        beside: dict[str, float] = {}
        for i, name in enumerate(names):
            rest = [j for j in range(len(names)) if j != i]
            others = [limits[j] for j in rest]
            if min(others, default=0) >= 0:
                best = solve([c[:, rest] for c in costs], [c[:, i] for c in costs], others, SOLUTION_SECONDS)
                beside |= {} if best is None else {name: self._share(name, best.error + fixed[name])}
        return UnreachableError(f"no plan meets the budget {self.budget}: {told}", shares, beside)

    def _together(self, names: Sequence[str], costs: Sequence[Floats]) -> str:
        """What the plan leaves whose shares have the least sum, as a budget that it meets."""
        references, fixed = np.array([self.references[name] for name in names]), self._fixed()
        left = sum(c[(c / references).sum(1).argmin()] for c in costs)
        return " ".join(f"{n}={self._share(n, float(left[i]) + fixed[n]):.3f}" for i, n in enumerate(names))

    def _held(self) -> str:
        """Where the MACs are that no method can save, in words; "" where there are none to speak of."""
        changing = {layer.name for layer in self.layers}
        staying = {o.name: o.macs for o in self.cost.others} | {x.layer: x.macs for x in self.cost.layers}
        staying = {name: macs for name, macs in staying.items() if name not in changing and macs}
        share = sum(staying.values()) / max(1, self.cost.total_macs)
        if share < NOTICED_SHARE:
            return ""
        most = sorted(staying, key=lambda name: -staying[name])
        shown = ", ".join(f"{n} ({staying[n] / self.cost.total_macs:.2f})" for n in most[:NAMES_SHOWN])
        more = f" and {len(most) - NAMES_SHOWN} more" if len(most) > NAMES_SHOWN else ""
        return f"; {share:.2f} of the MACs stay, in {shown}{more}: `cnncompress inspect` tells why"

    def _share(self, cost: str, value: float) -> float:
        """A cost as a share of the original's, in thousandths, rounded up."""
        return math.ceil(1000 * value / self.references[cost] - 1e-6) / 1000

    def _calibrate(self, solution: Solution) -> bool:
        """Compare the prediction for each change with what it does to the answers, made alone.

        The ratio of divergence to error is taken of every change, and the errors of all layers and cuts are multiplied
        by the median ratio: they then are nats. Those of one layer or cut are also multiplied by its own ratio over the
        median one; where the metric predicts nats, only by what exceeds `TRUSTED_FACTOR`. True where that changed any.
        """
        changes = {x.name: Change.of(x, solution[x.name]) for x in self.layers if solution[x.name].plan is not None}
        changes |= {cut.key: Change(cut, place) for cut, place in solution.places.items() if place < cut.whole}
        measured = self.alone.divergences(changes)
        errors = {n: changes[n].item.factor * changes[n].error for n in measured}
        telling = {n: kl for n, kl in measured.items() if max(kl, errors[n]) > LEAST_NATS}
        ratios = {n: max(kl, LEAST_NATS) / max(errors[n], LEAST_NATS) for n, kl in telling.items()}
        usual = float(np.median(list(ratios.values()))) if ratios else 1.0
        trust = TRUSTED_FACTOR if get_metric(self.guide.metric).nats else 1.0
        changed = False
        items: list[Layer | Cut] = [*self.layers, *self.cuts]
        for item in items:
            off = ratios.get(item.key, usual) / usual
            correction = off / min(max(off, 1 / trust), trust)
            item.factor *= usual * correction
            changed = changed or abs(correction - 1) > LEAST_CORRECTION
        return changed


def _afresh(layer: Layer) -> Layer:
    """A layer without the corrections and choices of an earlier search."""
    families = [replace(family, chosen=spread(len(family.ranks))) for family in layer.families]
    return replace(layer, families=families, factor=1.0)
