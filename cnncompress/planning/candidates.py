"""What a layer may become: every method that applies, at every rank that makes it cheaper, with its costs and error."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from torch import Tensor

from cnncompress.chains.lowering import lower
from cnncompress.chains.plan import LayerPlan
from cnncompress.chains.spec import Call, ConvSpec, Rank
from cnncompress.decompositions import Decomposition
from cnncompress.errors import in_layer
from cnncompress.latency.curves import Timed
from cnncompress.metrics import Metric, squared_error
from cnncompress.names.methods import SELECT
from cnncompress.planning.rules import Choice, Kept, RankRequest, choose_method, rank_for, seeded

AUTO = ("spatial-svd", "spatial-svd:first=horizontal", "channel-svd", "cp", "svd")  # whose errors are soon known
MOST_ENTRIES = {
    "cp": 2**20
}  # entries of a group's weight beyond which `AUTO` does without a method: its fits take too long
NO_CHAIN = "no chain was asked for, and its channels stay whole"
BLOCK_CHANNELS = 16  # channels
GRID_RANKS = 24  # ranks of a geometric grid


class Times(Protocol):
    """Milliseconds of layers and chains, as a `LatencyTable` tells them."""

    def dense(self, call: Call) -> float:
        """Those of a layer."""

    def chains(self, call: Call, method: Decomposition, ranks: Sequence[Rank]) -> list[Timed]:
        """Those of a method's chains."""


@dataclass
class Family:
    """One method for one layer: the ranks that make it cheaper, and the error at each.

    Errors are in nats where the metric's are, otherwise squared and relative to the layer.
    """

    method: Decomposition
    ranks: list[Rank]
    errors: Tensor  # float64 [ranks]
    chosen: list[int] = field(default_factory=list)  # the ranks that the solver is to choose from
    plans: dict[tuple[int, str], LayerPlan] = field(default_factory=dict)  # made so far, by place and lowering

    def near(self, index: int) -> None:
        """Let the solver choose among the ranks between the neighbours of `index` in the present choice."""
        place = self.chosen.index(index)
        low = self.chosen[max(0, place - 1)]
        high = self.chosen[min(len(self.chosen) - 1, place + 1)]
        step = max(1, (high - low) // GRID_RANKS)
        self.chosen = sorted({*range(low, high + 1, step), index})


@dataclass(frozen=True)
class Candidate:
    """One thing that a layer may become; `plan` None keeps it."""

    plan: LayerPlan | None
    costs: dict[str, float]
    error: float
    family: int = -1
    index: int = -1
    method: Decomposition | None = None

    @property
    def narrows(self) -> bool:
        """True where it may have any number of channels on both sides."""
        return self.method is None or self.method.any_width


@dataclass(eq=False)
class Layer:
    """A layer that may be replaced, and its families."""

    name: str
    call: Call
    families: list[Family]
    centred: bool = False
    factor: float = 1.0  # by which its errors were found to be too small

    @property
    def key(self) -> str:
        """Its name."""
        return self.name

    def candidates(self, table: Times | None = None) -> list[Candidate]:
        """Keep it, or one of the chosen ranks of a family, with costs; those dearer than the layer are left out."""
        options = [self.keep(table)]
        for number, family in enumerate(self.families):
            ranks = [family.ranks[i] for i in family.chosen]
            timed = table.chains(self.call, family.method, ranks) if table and ranks else None
            for place, index in enumerate(family.chosen):
                plan = self._plan(family, index, timed[place].lowering if timed else "")
                costs = {"macs": float(plan.macs[1]), "params": float(plan.params[1])}
                if timed is not None:
                    costs["latency"] = timed[place].milliseconds
                error = self.factor * float(family.errors[index])
                options.append(Candidate(plan, costs, error, number, index, family.method))
        return options

    def _plan(self, family: Family, index: int, lowering: str) -> LayerPlan:
        """That of a family at a rank, made once."""
        key = index, lowering
        if key not in family.plans:
            family.plans[key] = layer_plan(self.call, family.method, family.ranks[index], self.centred, lowering)
        return family.plans[key]

    def keep(self, table: Times | None = None) -> Candidate:
        """The layer as it is."""
        costs = {"macs": float(self.call.macs), "params": float(self.call.spec.params)}
        if table is not None:
            costs["latency"] = table.dense(self.call)
        return Candidate(None, costs, 0.0)


def layer_plan(call: Call, method: Decomposition, rank: Rank, centred: bool, lowering: str = "") -> LayerPlan:
    """The plan of a layer at a rank; `centred` gives its chain a bias."""
    spec = call.spec
    chain = lower(method.stages(spec.replace(bias=spec.bias or centred), rank), lowering)
    return LayerPlan(spec, method.name, rank, chain, (call.macs, call.macs_of(chain)), dict(method.settings), lowering)


def methods_of(choice: Choice, spec: ConvSpec) -> list[str]:
    """The methods that a budget chooses from for a layer."""
    weights = spec.weights // spec.groups
    auto = [name for name in AUTO if weights <= MOST_ENTRIES.get(name, math.inf)]
    chains = (text for text in choice.methods if text != SELECT)
    chosen = (name for text in chains for name in (auto if text == "auto" else [text]))
    return [seeded(text, choice.seed) for text in chosen]


@dataclass(frozen=True)
class Common:
    """What all chains have in common: a bias where `centred`, and ranks that are multiples of `multiple`.

    None leaves it to each layer's full rank (`usual_multiple`).
    """

    centred: bool = False
    multiple: int | None = None


@in_layer
def make_layer(
    name: str, call: Call, weight: Tensor, methods: Iterable[str], metrics: Sequence[Metric], common: Common
) -> Layer | Kept:
    """A layer with its families, or the reason why it can only be kept."""
    centred, multiple = common.centred, common.multiple
    spec, families = call.spec, []
    refused, dear = [], []
    scale = 0.5 if metrics[0].nats else 1 / (squared_error(metrics, weight.double()) or 1.0)
    for text in methods:
        method, fixed = choose_method(text, spec)
        reason = method.refuse(spec)
        step = usual_multiple(spec, method.full_rank(spec)) if multiple is None and reason is None else multiple or 1
        every = method.smooth or (method.sliced and all(metric.separable for metric in metrics))
        asked = Kept(reason) if reason else ranks_asked(method, spec, fixed, step, every)
        if isinstance(asked, Kept):
            refused.append(asked)
            continue
        ranks = [rank for rank in asked if is_cheaper(call, layer_plan(call, method, rank, centred))]
        if ranks:
            errors = scale * method.quick().errors(weight, spec, ranks, metrics)
            families.append(Family(method, ranks, errors, spread(len(ranks))))
        else:
            where = "this rank" if fixed else f"rank {step} or a multiple of it" if step > 1 else "any rank"
            dear.append(Kept(f"{method.name} would not be cheaper at {where}"))
    return Layer(name, call, families, centred) if families else [*dear, *refused, Kept(NO_CHAIN)][0]


def ranks_asked(
    method: Decomposition, spec: ConvSpec, fixed: RankRequest | None, multiple: int, every: bool
) -> list[Rank] | Kept:
    """The one rank that is asked for, or those of `ranks_of`; the reason where the layer cannot have it."""
    if fixed is None:
        return ranks_of(method, spec, multiple, every)
    rank = rank_for(method, spec, fixed)
    return rank if isinstance(rank, Kept) else [rank]


def is_cheaper(call: Call, plan: LayerPlan) -> bool:
    """True where a plan has fewer MACs and fewer parameters than the layer."""
    return plan.macs[1] < call.macs and plan.params[1] < plan.params[0]


def usual_multiple(spec: ConvSpec, full: Rank) -> int:
    """`BLOCK_CHANNELS` for ranks that are large against it in a layer that is not narrow, else 1.

    Processors compute that many channels at once: a rank between two multiples takes as long as the next one or, where
    no fast path exists for it, far longer. Narrow layers lose more accuracy by it than they gain time.
    """
    width = min(spec.in_channels, spec.out_channels) // spec.groups
    return BLOCK_CHANNELS if min(full) >= 16 * BLOCK_CHANNELS and width >= 4 * BLOCK_CHANNELS else 1


def ranks_of(method: Decomposition, spec: ConvSpec, multiple: int, every: bool) -> list[Rank]:
    """Ranks to look at, ascending: `every` multiple of `multiple`, or some shares of the full rank, evenly in scale."""
    full = method.full_rank(spec)
    if every:
        return [(k,) for k in range(multiple, full[0] + 1, multiple)]
    shares = np.geomspace(1 / max(full), 1, GRID_RANKS // 2)
    ranks = {method.rank(spec, float(share)) for share in shares}
    if len(method.rank_names) == len(full):
        ranks = {tuple(min(f, -(-k // multiple) * multiple) for k, f in zip(rank, full, strict=True)) for rank in ranks}
    if len(full) == 1:  # a number of clusters is the nearest one that is possible
        ranks = {method.rank(spec, rank[0]) for rank in ranks}
    return sorted(ranks)


def spread(count: int) -> list[int]:
    """At most `GRID_RANKS` of the indices below `count`, evenly in scale, the first and the last included."""
    return sorted({min(count, max(1, round(x))) - 1 for x in np.geomspace(1, count, GRID_RANKS).tolist()})
