"""The solution of a joint problem: what every layer becomes, and how many channels are left of each cut."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cnncompress.network.channels import Group
from cnncompress.planning.candidates import Candidate
from cnncompress.planning.cuts import Cut
from cnncompress.planning.joint import Component, Options, Prices, Shared, front_of
from cnncompress.planning.solver.fronts import Front
from cnncompress.planning.solver.highs import Floats, prices
from cnncompress.planning.solver.knapsack import solve


class Solution(dict[str, Candidate]):
    """What every layer becomes, by its name; `counts` has the channels left of each cut, `costs` the sums of the costs.

    Candidates are those of the layers with all their channels.
    """

    def __init__(self, layers: Mapping[str, Candidate], places: Mapping[Cut, int], costs: Mapping[str, float]) -> None:
        super().__init__(layers)
        self.places, self.costs = dict(places), dict(costs)

    def cost(self, name: str) -> float:
        """The sum of a cost; of one that was no limit, as if all channels were left."""
        return self.costs.get(name, sum(candidate.costs[name] for candidate in self.values()))

    @property
    def error(self) -> float:
        """The sum of the errors of all changes."""
        chains = sum(candidate.error for candidate in self.values())
        return chains + sum(cut.error(place) for cut, place in self.places.items())

    @property
    def counts(self) -> dict[Group, int]:
        """The channels that are left of each group that changes."""
        return {cut.group: cut.counts[place] for cut, place in self.places.items() if place < cut.whole}


@dataclass(frozen=True)
class Joint:
    """A problem: parts of a network, what their layers may become, and what that costs; sums are within `limits`."""

    parts: Sequence[Component]
    options: Options
    prices: Prices
    limits: Sequence[float]
    seconds: float  # for one solution

    def solve(self) -> tuple[Solution | None, list[Front]]:
        """The solution of the smallest error, None where there is none, and the fronts that it is from.

        It is exact for what the fronts hold. Where they were thinned out, those of a second round hold the ways around
        the prices of the first; for the counts that were found, the layers are then settled one by one.
        """
        fronts = [front_of(part, self.options, self.prices) for part in self.parts]
        best = self._among(fronts)
        if best is None or not any(part.cuts for part in self.parts):
            return best, fronts
        at = self._price(fronts, best)
        again = [front_of(p, self.options, self.prices, at) if len(p.cuts) > 1 else f for p, f in self._both(fronts)]
        best = min(filter(None, (best, self._among(again))), key=lambda solution: solution.error)
        settled = [self._settled(x, best) for part in self.parts for x in part.layers]
        last = self._among(settled, best.places)
        return (best if last is None or last.error > best.error else last), fronts

    def _both(self, fronts: Sequence[Front]) -> Iterable[tuple[Component, Front]]:
        return zip(self.parts, fronts, strict=True)

    def _among(self, fronts: Sequence[Front], places: Mapping[Cut, int] | None = None) -> Solution | None:
        """The best of the ways in some fronts; `places` are those of cuts that are settled."""
        if min(self.limits) < 0:
            return None
        selection = solve([f.cost for f in fronts], [f.error for f in fronts], self.limits, self.seconds)
        if selection is None:
            return None
        taken: dict[str, int] = {}
        for front, choice in zip(fronts, selection.choice, strict=True):
            taken |= front.way(choice)
        layers = {name: selection[taken[name]] for name, selection in self.options.items()}
        cuts = [cut for part in self.parts for cut in part.cuts]
        places = {cut: taken[cut.key] for cut in cuts} if places is None else places
        return Solution(layers, places, dict(zip(self.prices.names, selection.costs, strict=True)))

    def _price(self, fronts: Sequence[Front], solution: Solution) -> Floats:
        """The price of each limit, in errors, around a solution."""
        limits = np.maximum(np.array(self.limits), 1e-300)
        scale = solution.error or 1.0
        error = np.concatenate([front.error for front in fronts]) / scale
        cost = np.concatenate([front.cost for front in fronts]) / limits
        rows = np.repeat(np.arange(len(fronts)), [len(front.error) for front in fronts])
        return scale * prices(error, cost, rows) / limits

    def _settled(self, shared: Shared, solution: Solution) -> Front:
        """The front of a layer with the counts of a solution; what these cost in errors is with the first layer."""
        counts = {cut: cut.counts[solution.places[cut]] for cut in shared.cuts}
        own = sum(cut.error(solution.places[cut]) for cut in shared.cuts if cut.group.makers[0] == shared.layer.name)
        front = self.prices.front(shared, self.options[shared.layer.name])(counts)
        return Front(front.error + own, front.cost, front.taken)
