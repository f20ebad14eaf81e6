"""Times of layers and chains as they are within the whole network, corrected by what that takes after a plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cnncompress.chains.plan import Plan
from cnncompress.chains.spec import Call, Chain, Rank
from cnncompress.decompositions import Decomposition
from cnncompress.latency.curves import Timed
from cnncompress.latency.table import LatencyTable

CLOCKINGS = 8  # measurements of the whole network, at most
CLOSE_SHARE = 0.02  # of its time: a smaller difference is noise
EASINGS = 3  # of times that leave no plan
LARGEST_FACTOR = 2.0  # what one measurement may change the times of chains by


@dataclass(frozen=True)
class Sums:
    """Milliseconds in a plan: of the layers that stay and of the chains; of the original, all its layers and itself."""

    kept: float
    chains: float
    layers: float
    network: float

    @property
    def predicted(self) -> float:
        """What the network takes after the plan."""
        return self.network - self.layers + self.kept + self.chains


@dataclass(frozen=True)
class Scaled:
    """The times of a table, those of all layers `scale` times as long, those of chains `slower` times more.

    With the factors `between` in the place of `slower`, a plan took longer than predicted, and not as long.
    """

    table: LatencyTable
    scale: float = 1.0
    slower: float = 1.0
    scaled: bool = False
    between: tuple[float, float] = (0.0, math.inf)

    def dense(self, call: Call) -> float:
        """As that of the table."""
        return self.scale * self.table.dense(call)

    def chain(self, call: Call, chain: Chain, lowering: str = "") -> float:
        """As that of the table."""
        return self.scale * self.slower * self.table.chain(call, chain, lowering)

    def chains(self, call: Call, method: Decomposition, ranks: Sequence[Rank]) -> list[Timed]:
        """As those of the table."""
        factor = self.scale * self.slower
        return [
            replace(timed, milliseconds=factor * timed.milliseconds) for timed in self.table.chains(call, method, ranks)
        ]

    def corrected(self, sums: Sums, measured: float) -> Scaled | None:
        """The times in which the plan of `sums` takes what was measured; None where they tell so already.

        Where layers were not seen within the network, their share of its time is not known, and is corrected first.
        A factor that would go back to where plans took too long, or too little, is halfway between them instead: chains
        of several kinds may be off by several factors, and which of them a plan has changes with this one.
        """
        if not sums.chains or abs(measured / sums.predicted - 1) <= CLOSE_SHARE:
            return None
        saved, factor = sums.network - sums.predicted, 1.0
        if not self.table.seen and not self.scaled and saved > 0 and measured < sums.network:
            factor = min((sums.network - measured) / saved, sums.network / sums.layers)
            low, high = 0.0, math.inf
        elif measured > sums.predicted:
            low, high = max(self.between[0], self.slower), self.between[1]
        else:
            low, high = self.between[0], min(self.between[1], self.slower)
        wrong = (measured - (sums.network - factor * saved)) / (factor * sums.chains)
        slower = self.slower * min(max(1 + wrong, 1 / LARGEST_FACTOR), LARGEST_FACTOR)
        if not low < slower < high:
            slower = math.sqrt(low * high)
        return replace(self, scale=factor * self.scale, slower=slower, scaled=True, between=(low, high))

    def eased(self, reachable: Scaled) -> Scaled:
        """The times with chains halfway to what they took in those, in which there was a plan."""
        return replace(self, slower=math.sqrt(self.slower * reachable.slower))


def best_of(plans: Sequence[Plan], share: float) -> Plan | None:
    """Of plans whose time was measured the one with the least predicted loss in a share of it, None without any.

    Of equal ones it is the fastest.
    """
    within = [plan for plan in plans if plan.achieved["latency"] <= share * (1 + CLOSE_SHARE)]
    return min(within, key=lambda plan: (sum(plan.rises.values()), plan.achieved["latency"]), default=None)
