"""The exact multiple-choice knapsack: one candidate a layer, the smallest sum of errors, sums of costs within limits.

Kellerer, Pferschy and Pisinger, "Knapsack Problems" (2004), chapter 11: dominance, Lagrangian bound, reduced costs,
and dynamic programming over what these leave; where that grows too large (several limits), branch and bound by HiGHS.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cnncompress.planning.solver.highs import Floats, Indices, branch_and_bound, prices

ROUNDING = 1e-12  # of a limit, or of an error: what counts as equal
MAX_STATES = 50_000  # partial selections that are kept side by side


@dataclass(frozen=True)
class Selection:
    """One candidate for each layer, and how good that is."""

    choice: tuple[int, ...]  # index of the candidate of each layer
    error: float  # sum of the chosen errors
    costs: tuple[float, ...]  # sums of the chosen costs, one a limit
    bound: float  # no selection within the limits has a smaller error than this
    proven: bool  # `error` is the optimum, to rounding


def solve(
    costs: Sequence[np.ndarray], errors: Sequence[np.ndarray], limits: Sequence[float], time_limit: float = 20.0
) -> Selection | None:
    """The selection of the smallest error within the limits.

    `costs[l]` is [candidates, limits] and `errors[l]` [candidates] for each layer l, all at least 0; a candidate of
    infinite error is never chosen. A sum may be above its limit by rounding (1e-12 of the limit). After `time_limit`
    seconds the best selection found so far is returned, with `proven` False. None where no selection fits; of several
    limits that exclude each other, also where none was found in time. ValueError for values or shapes that make no
    sense.
    """
    deadline = time.monotonic() + time_limit
    costs, errors = [np.asarray(c, float) for c in costs], [np.asarray(e, float) for e in errors]
    _check(costs, errors, limits)
    if not costs:
        return Selection((), 0.0, (0.0,) * len(limits), 0.0, True) if all(b >= 0 for b in limits) else None
    items = _items(costs, errors, np.asarray(limits, float))
    if items is None:
        return None
    best, bound, proven = _search(items, deadline)
    if best is None:
        return None
    choice = tuple(int(i) for i in items.candidate[best])
    error = math.fsum(e[j] for e, j in zip(errors, choice, strict=True))
    sums = tuple(math.fsum(c[j, k] for c, j in zip(costs, choice, strict=True)) for k in range(len(limits)))
    return Selection(choice, error, sums, error if proven else min(bound, error), proven)


def _check(costs: Sequence[Floats], errors: Sequence[Floats], limits: Sequence[float]) -> None:
    """ValueError for shapes that do not agree, no candidates, nan, negative values or infinite costs."""
    if len(costs) != len(errors):
        raise ValueError(f"costs of {len(costs)} layers, errors of {len(errors)}")
    if any(math.isnan(b) for b in limits):
        raise ValueError("a limit is nan")
    for layer, (c, e) in enumerate(zip(costs, errors, strict=True)):
        if e.ndim != 1 or not len(e) or c.shape != (len(e), len(limits)):
            raise ValueError(f"layer {layer}: costs {c.shape} and errors {e.shape} for {len(limits)} limits")
        if not (e >= 0).all():
            raise ValueError(f"layer {layer}: an error is nan or negative")
        if not ((c >= 0) & (c < math.inf)).all():
            raise ValueError(f"layer {layer}: a cost is nan, negative or infinite")


@dataclass(frozen=True)
class _Items:
    """Candidates of all layers in a row, layer by layer; costs are shares of the limits."""

    layer: Indices  # [n]
    candidate: Indices  # [n], its index in the layer
    error: Floats  # [n]
    cost: Floats  # [n, limits]

    def take(self, which: NDArray[np.bool_] | Indices) -> _Items:
        return _Items(self.layer[which], self.candidate[which], self.error[which], self.cost[which])

    @property
    def starts(self) -> Indices:
        return np.flatnonzero(np.diff(self.layer, prepend=-1))

    @property
    def rows(self) -> Indices:
        """The number of each item's layer among those that are left."""
        return np.cumsum(np.diff(self.layer, prepend=-1) > 0) - 1

    def least(self, values: Floats) -> Indices:
        """The item of each layer with the smallest of `values` [n]."""
        return self.starts + np.array([part.argmin() for part in np.split(values, self.starts[1:])])


def _fits(sums: Floats) -> NDArray[np.bool_]:
    """If sums [..., limits], in shares of the limits, are within all of them."""
    return np.asarray((sums <= 1 + ROUNDING).all(-1))


def _items(costs: Sequence[Floats], errors: Sequence[Floats], limits: Floats) -> _Items | None:
    """The candidates worth a look, or None where the cheapest of each layer are too much already."""
    if (limits < 0).any():
        return None
    finite = np.isfinite(limits)
    parts = []
    for layer, (c, e) in enumerate(zip(costs, errors, strict=True)):
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            share = np.where(c > 0, c / limits, 0.0)[:, finite]
        index = np.flatnonzero(np.isfinite(e) & _fits(share))
        index = index[_undominated(e[index], share[index])]
        parts.append(_Items(np.full(len(index), layer), index, e[index], share[index]))
        if not len(index):
            return None
    fields = ("layer", "candidate", "error", "cost")
    items = _Items(*(np.concatenate([getattr(part, name) for part in parts]) for name in fields))
    return items if _fits(np.minimum.reduceat(items.cost, items.starts).sum(0)) else None


def _undominated(error: Floats, cost: Floats) -> Indices:
    """The candidates that no other one equals or beats in the error and in every cost; of equal ones the first."""
    order = np.lexsort((*cost.T, error))
    cost = cost[order]
    beaten = np.triu((cost[:, None] <= cost[None]).all(-1), 1).any(0)
    return order[~beaten]


def _search(items: _Items, deadline: float) -> tuple[Indices | None, float, bool]:
    """The best selection found (an item of each layer), a lower bound on every selection's error, and if it is proven.

    One round is enough unless the error falls by orders of magnitude: then HiGHS, whose tolerances are absolute, looks
    again at the new scale.
    """
    best, bound = _greedy(items, items.least(items.error)), 0.0
    ceiling = 2 * float(np.maximum.reduceat(items.error, items.starts).sum()) or 1.0  # above every selection
    while True:
        upper = float(items.error[best].sum()) if best is not None else ceiling
        if not upper:
            return best, bound, True
        weights = _multipliers(items, upper)
        reduced, relaxed = _reduced(items, weights, upper)
        bound = max(bound, relaxed)
        start = _greedy(items, items.least(reduced))
        if start is not None and items.error[start].sum() < upper:
            best, upper = start, float(items.error[start].sum())
        if best is not None and upper - bound <= ROUNDING * upper:
            return best, bound, True
        left = np.flatnonzero((reduced <= upper - relaxed) & (items.error <= upper))
        core = items.take(left)
        binding = ~_loose(core)
        core, weights = replace(core, cost=core.cost[:, binding]), weights[binding]
        better, complete = _enumerate(core, weights, upper, deadline)
        if better is not None:
            best = left[better]
        if complete:
            return best, bound, True
        gap = upper - relaxed
        better, dual, complete = _branch(core, weights, upper, gap, deadline)
        if better is not None and core.error[better].sum() < upper:
            best = left[better]
        bound = max(bound, min(dual, upper))
        if better is None or not complete:
            return best, bound, False
        if items.error[best].sum() - relaxed > 0.1 * gap:
            return best, bound, True


def _loose(items: _Items) -> NDArray[np.bool_]:
    """The limits that no selection exceeds, [limits]."""
    return np.maximum.reduceat(items.cost, items.starts).sum(0) <= 1


def _multipliers(items: _Items, scale: float) -> Floats:
    """The price of each limit at the optimum of the linear relaxation among items of an error up to `scale`."""
    items = items.take(items.error <= scale)
    return scale * prices(items.error / scale, items.cost, items.rows)


def _reduced(items: _Items, weights: Floats, scale: float) -> tuple[Floats, float]:
    """The reduced cost of every item, and the Lagrangian lower bound: any weights >= 0 give a valid one.

    A selection of an item has at least the bound plus its reduced cost as its error.
    """
    price = items.error + items.cost @ weights
    least = np.minimum.reduceat(price, items.starts)
    reduced = price - least[items.rows]
    return reduced, math.fsum([*least, *-weights]) - _noise(weights, scale)


def _noise(weights: Floats, scale: float) -> float:
    """What rounding may add to a Lagrangian bound of selections of an error up to `scale`."""
    return 1e-13 * scale + 2 * ROUNDING * float(weights.sum())


def _greedy(items: _Items, chosen: Indices) -> Indices | None:
    """From a selection, swap candidates until it fits, at the least error a saving; then while that lowers the error.

    None where no swap brings it nearer to the limits (possible with several limits only).
    """
    chosen = chosen.copy()
    position = items.rows
    while True:
        sums = items.cost[chosen].sum(0)
        change = items.error - items.error[chosen][position]
        after = sums + items.cost - items.cost[chosen][position]
        if _fits(sums):
            step = int(np.where((after <= 1).all(1), change, 0).argmin())  # without slack, so that it fits ever after
            if change[step] >= 0 or not _fits(after[step]):
                return chosen
        else:
            saved = np.maximum(sums - 1, 0).sum() - np.maximum(after - 1, 0).sum(1)
            useful = saved > 1e-14  # less is rounding, and could go in circles
            if not useful.any():
                return None
            price = np.full(len(saved), np.inf)
            price[useful] = np.maximum(change[useful], 1e-300) / saved[useful]
            step = int(price.argmin())
        chosen[position[step]] = step


def _enumerate(core: _Items, weights: Floats, upper: float, deadline: float) -> tuple[Indices | None, bool]:
    """Dynamic programming: the best selection of an error below `upper` (or None), and if the search was complete.

    A state is a selection for some of the layers. It goes where it cannot lead to a fitting selection below `upper`,
    and, with one limit, where another is no worse in error and cost.
    """
    groups = np.split(np.arange(len(core.layer)), core.starts[1:])
    price = core.error + core.cost @ weights
    groups.sort(key=lambda group: np.diff(np.sort(price[group])[:2]).sum())  # the undecided layers last
    least = np.array([[core.error[g].min(), price[g].min(), *core.cost[g].min(0)] for g in groups])
    rest = np.vstack([np.cumsum(least[:0:-1], 0)[::-1], np.zeros(least.shape[1])])  # of the layers still to come
    goal = upper * (1 - ROUNDING)
    cost, error = np.zeros((1, len(weights))), np.zeros(1)
    trail: list[tuple[Indices, Indices]] = []
    for group, left in zip(groups, rest, strict=True):
        if len(error) * len(group) > 20 * MAX_STATES or time.monotonic() > deadline:
            return None, False
        error = (error[:, None] + core.error[group]).ravel()
        cost = (cost[:, None] + core.cost[group]).reshape(len(error), len(weights))
        bound = np.maximum(error + left[0], error + cost @ weights + left[1] - weights.sum() - _noise(weights, upper))
        keep = np.flatnonzero(_fits(cost + left[2:]) & (bound < goal))
        if len(weights) == 1:
            keep = keep[np.lexsort((error[keep], cost[keep, 0]))]
            lowest = np.minimum.accumulate(error[keep])
            keep = keep[np.flatnonzero(np.diff(lowest, prepend=np.inf) < 0)]
        if not len(keep):
            return None, True
        if len(keep) > MAX_STATES:
            return None, False
        trail.append((keep // len(group), group[keep % len(group)]))
        cost, error = cost[keep], error[keep]
    state, chosen = int(error.argmin()), []
    for parents, picked in reversed(trail):
        chosen.append(picked[state])
        state = parents[state]
    return np.sort(np.array(chosen)), True


def _branch(
    core: _Items, weights: Floats, upper: float, gap: float, deadline: float
) -> tuple[Indices | None, float, bool]:
    """HiGHS's best selection (or None), its lower bound on the error, and if its search was complete."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        return None, 0.0, False
    rows = core.rows
    base = core.error[core.least(core.error + core.cost @ weights)]
    selection, dual, complete = branch_and_bound((core.error - base[rows]) / gap, core.cost, rows, seconds)
    bound = 0.0 if dual is None else max(0.0, float(base.sum()) + gap * (dual - 1e-6))
    if selection is None:
        return None, bound, complete
    chosen = core.least(-selection)
    return _greedy(core, chosen), bound, complete and bool(_fits(core.cost[chosen].sum(0)))
