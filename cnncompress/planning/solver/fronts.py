"""Ways to settle several variables together, as errors and costs that no other way beats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from cnncompress.planning.solver.highs import Floats, Indices

WAYS_KEPT = 256  # ways that are kept of one front, spread evenly over its costs
WAYS_AT_ONCE = 512  # ways that are compared with each other


@dataclass(frozen=True)
class Front:
    """Ways to settle some variables: `error` [m], `cost` [m, limits], and the option `taken` of each variable [m]."""

    error: Floats
    cost: Floats
    taken: Mapping[str, Indices]

    def plus(self, other: Front) -> Front:
        """Every way of this front with every way of one of other variables."""
        one, two = (index.ravel() for index in np.indices((len(self.error), len(other.error))))
        taken = {name: options[one] for name, options in self.taken.items()}
        taken |= {name: options[two] for name, options in other.taken.items()}
        return Front(self.error[one] + other.error[two], self.cost[one] + other.cost[two], taken)

    def best(self, most: int = WAYS_KEPT, price: Floats | None = None) -> Front:
        """The ways that no other one equals or beats in the error and in every cost, at most so many.

        Of more, those are kept whose error and costs at a `price` [limits] are least, or without one an even choice;
        the best way and the cheapest ones are among them.
        """
        left = undominated(self.error, self.cost)
        if len(left) > most:
            ends = {0, *(int(i) for i in self.cost[left].argmin(0))}
            if price is None:
                places = np.linspace(0, len(left) - 1, most).round().astype(int)
            else:
                places = np.argsort(self.error[left] + self.cost[left] @ price, kind="stable")[:most]
            left = left[sorted({*places.tolist(), *ends})]
        return self.only(left)

    def only(self, index: Indices) -> Front:
        """Some of the ways."""
        return Front(self.error[index], self.cost[index], {name: taken[index] for name, taken in self.taken.items()})

    def way(self, index: int) -> dict[str, int]:
        """The option of each variable in one way."""
        return {name: int(taken[index]) for name, taken in self.taken.items()}


def together(fronts: Iterable[Front]) -> Front:
    """The ways of several fronts of the same variables."""
    parts = list(fronts)
    taken = {name: np.concatenate([f.taken[name] for f in parts]) for name in parts[0].taken}
    return Front(np.concatenate([f.error for f in parts]), np.concatenate([f.cost for f in parts]), taken)


def undominated(error: Floats, cost: Floats) -> Indices:
    """The ways that no other one equals or beats in the error and in every cost, by rising error; of equal ones one."""
    order = np.lexsort((*cost.T, error))
    order = order[np.isfinite(error[order])]
    if cost.shape[1] == 1:
        lowest = np.minimum.accumulate(cost[order, 0])
        return order[np.flatnonzero(np.diff(lowest, prepend=np.inf) < 0)]
    kept = np.empty((0, cost.shape[1]))
    left: list[Indices] = []
    for start in range(0, len(order), WAYS_AT_ONCE):
        part = order[start : start + WAYS_AT_ONCE]
        part = part[~np.any(np.all(kept[None] <= cost[part][:, None], -1), 1)]
        mine = cost[part]
        beaten = np.triu((mine[:, None] <= mine[None]).all(-1), 1).any(0)
        left.append(part[~beaten])
        kept = np.concatenate([kept, cost[left[-1]]])
    return np.concatenate(left) if left else order
