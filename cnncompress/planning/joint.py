"""Layers that share channels are settled together: how many channels are left, and the chain of each layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from cnncompress.chains.lowering import lower
from cnncompress.chains.spec import Call, Chain, ConvSpec, chain_params
from cnncompress.planning.candidates import Candidate, Layer, Times
from cnncompress.planning.cuts import Cut
from cnncompress.planning.solver.fronts import Front, together
from cnncompress.planning.solver.highs import Floats

WAYS_BETWEEN = 192  # ways that are kept of some layers of a component
Counts = Mapping[Cut, int]
Options = Mapping[str, Sequence[Candidate]]  # by layer


@dataclass(frozen=True)
class Shared:
    """A layer with the cuts whose channels it takes and gives; in a depthwise convolution they are the same one."""

    layer: Layer
    takes: Cut | None = None
    gives: Cut | None = None

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """Each once."""
        return tuple(dict.fromkeys(cut for cut in (self.takes, self.gives) if cut is not None))

    def narrow(self, counts: Counts) -> Call:
        """How the network calls the layer with so many channels of some cuts."""
        call, spec = self.layer.call, self.layer.call.spec
        if self.takes is not None and self.takes in counts:
            inputs = counts[self.takes] * self.takes.group.takers.get(self.layer.name, 1)
            spec = spec.replace(in_channels=inputs, groups=inputs if spec.depthwise else spec.groups)
        if self.gives is not None and self.gives in counts:
            spec = spec.replace(out_channels=counts[self.gives])
        return replace(call, spec=spec)


@dataclass(frozen=True)
class Component:
    """Layers that share channels, and the cuts of these."""

    layers: tuple[Shared, ...]
    cuts: tuple[Cut, ...] = ()


def components(layers: Sequence[Layer], cuts: Sequence[Cut]) -> list[Component]:
    """The layers in parts that share no channels.

    The cuts of a part make no circle through its layers: the last one of a circle is left out, its channels all stay.
    """
    used: list[Cut] = []
    for cut in cuts:
        if not _circular(_shared(layers, [*used, cut])):
            used.append(cut)
    shared = _shared(layers, used)
    parts: list[Component] = []
    for one in shared:
        touching = [c for c in parts if any(cut in c.cuts for cut in one.cuts)]
        cut_lists = [*(c.cuts for c in touching), one.cuts]
        merged = Component(
            (*(x for c in touching for x in c.layers), one),
            tuple(dict.fromkeys(cut for part in cut_lists for cut in part)),
        )
        parts = [c for c in parts if c not in touching] + [merged]
    return parts


def _shared(layers: Sequence[Layer], cuts: Sequence[Cut]) -> list[Shared]:
    takes = {name: cut for cut in cuts for name in (*cut.group.takers, *cut.group.between)}
    gives = {name: cut for cut in cuts for name in (*cut.group.makers, *cut.group.between)}
    return [Shared(layer, takes.get(layer.name), gives.get(layer.name)) for layer in layers]


def _circular(layers: Sequence[Shared]) -> bool:
    """Whether cuts are joined by layers in more than one way; several layers between the same two count once."""
    parents: dict[Cut, Cut] = {}

    def root(cut: Cut) -> Cut:
        return cut if cut not in parents else root(parents[cut])

    for pair in {frozenset(layer.cuts) for layer in layers if len(layer.cuts) == 2}:
        one, two = (root(cut) for cut in pair)
        if one is two:
            return True
        parents[one] = two
    return False


@dataclass(frozen=True)
class Prices:
    """What options cost: the `names` of the costs, measured times where there are any, a bias in what takes fewer."""

    names: Sequence[str]
    table: Times | None = None
    biased: bool = False

    def front(self, shared: Shared, options: Sequence[Candidate]) -> Callable[[Counts], Front]:
        """The front of a layer's options for each number of channels left.

        The costs of any chain are products of the widths of its stages, so that they are linear in each of both ends:
        those at two numbers of channels tell all others. Times are taken to change as those of the layer itself.
        """
        corners: list[dict[Cut, int]] = [{}]
        for cut in shared.cuts:
            corners = [{**corner, cut: count} for corner in corners for count in (_all(cut), _half(cut))]
        costs = [self._costs(shared, options, corner) for corner in corners]
        errors = np.array([option.error for option in options])
        fixed = np.array([option.plan is not None and not option.narrows for option in options])
        index = np.arange(len(options))

        def at(counts: Counts) -> Front:
            weights = [_weight(corner, counts) for corner in corners]
            cost = np.sum([weight * part for weight, part in zip(weights, costs, strict=True) if weight], 0)
            narrower = any(counts[cut] < _all(cut) for cut in shared.cuts)
            error = np.where(fixed, np.inf, errors) if narrower else errors
            cost = np.maximum(self._with_bias(shared, cost, counts), 0)
            return Front(error, cost, {shared.layer.name: index}).best()

        return at

    def _costs(self, shared: Shared, options: Sequence[Candidate], counts: Counts) -> Floats:
        call, own = shared.narrow(counts), shared.layer.call
        slower = 1.0
        if self.table is not None and call.spec != own.spec:
            slower = self.table.dense(call) / self.table.dense(own)
        rows = []
        for option in options:
            chain = chain_at(call.spec, option)
            costs = {"macs": float(call.macs_of(chain)), "params": float(chain_params(chain))}
            if "latency" in option.costs:
                costs["latency"] = slower * option.costs["latency"]
            rows.append([costs[name] for name in self.names])
        return np.array(rows)

    def _with_bias(self, shared: Shared, cost: Floats, counts: Counts) -> Floats:
        """The costs with the bias that the layer itself, the first option, gets where it takes fewer channels."""
        spec, takes = shared.layer.call.spec, shared.takes
        if not self.biased or spec.bias or spec.depthwise or takes is None or counts[takes] == _all(takes):
            return cost
        outputs = spec.out_channels if shared.gives is None else counts[shared.gives]
        added = np.zeros_like(cost)
        added[0] = [outputs * (name == "params") for name in self.names]
        return cost + added


def chain_at(spec: ConvSpec, option: Candidate) -> Chain:
    """What an option puts in the place of a layer that is narrowed to `spec`."""
    if option.plan is None or option.method is None:
        return (spec,)
    if not option.narrows:
        return option.plan.chain
    biased = spec.replace(bias=option.plan.chain[-1].bias)
    return lower(option.method.stages(biased, option.plan.rank), option.plan.lowering)


def _all(cut: Cut) -> int:
    return cut.group.channels


def _half(cut: Cut) -> int:
    return max(1, cut.group.channels // 2)


def _weight(corner: Counts, counts: Counts) -> float:
    """The weight of a corner in the interpolation that is linear in each count."""
    weight = 1.0
    for cut, count in corner.items():
        part = (_all(cut) - counts[cut]) / max(1, _all(cut) - _half(cut))
        weight *= 1 - part if count == _all(cut) else part
    return weight


@dataclass(frozen=True)
class Factor:
    """A front for every choice of the counts of some cuts, at most two."""

    cuts: tuple[Cut, ...]
    at: Callable[[Counts], Front]
    known: dict[tuple[int, ...], Front] = field(default_factory=dict)

    def __call__(self, counts: Counts) -> Front:
        """The front at some counts, of these cuts at least."""
        key = tuple(counts[cut] for cut in self.cuts)
        if key not in self.known:
            self.known[key] = self.at(counts)
        return self.known[key]


def front_of(component: Component, options: Options, prices: Prices, at: Floats | None = None) -> Front:
    """The ways to settle all layers and cuts of a component, thinned out to `WAYS_BETWEEN` on the way.

    Cuts go one after another, those with the fewest neighbours first: each way knows the best ways of what is behind.
    `at` is the price of each limit around which ways are kept, by default anywhere.
    """
    factors = [Factor(x.cuts, prices.front(x, options[x.layer.name])) for x in component.layers]
    left = list(component.cuts)
    while left:
        cut = min(left, key=lambda cut: len({c for f in factors if cut in f.cuts for c in f.cuts}))
        mine = [factor for factor in factors if cut in factor.cuts]
        others = tuple(dict.fromkeys(c for factor in mine for c in factor.cuts if c is not cut))
        factors = [factor for factor in factors if factor not in mine]
        factors.append(Factor(others, _without(cut, mine, len(prices.names), at)))
        left.remove(cut)
    return _sum([factor({}) for factor in factors], at)


def _without(cut: Cut, factors: Sequence[Factor], limits: int, price: Floats | None) -> Callable[[Counts], Front]:
    """The front of some factors in which the count of a cut is settled too."""

    def at(counts: Counts) -> Front:
        ways = []
        for place in cut.chosen:
            own = Front(np.array([cut.error(place)]), np.zeros((1, limits)), {cut.key: np.array([place])})
            settled = {**counts, cut: cut.counts[place]}
            ways.append(_sum([own, *(factor(settled) for factor in factors)], price))
        return together(ways).best(WAYS_BETWEEN, price)

    return at


def _sum(fronts: Sequence[Front], price: Floats | None) -> Front:
    total = fronts[0]
    for front in fronts[1:]:
        total = total.plus(front).best(WAYS_BETWEEN, price)
    return total
