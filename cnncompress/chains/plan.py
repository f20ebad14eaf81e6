"""Plans (what replaces each layer) and budgets, as plain values."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from cnncompress.chains.spec import Chain, ConvSpec, Pair, Rank, chain_params
from cnncompress.errors import UsageError
from cnncompress.names.metrics import DEFAULT
from cnncompress.terminal.words import human

LISTED = 12  # layers of a plan in its repr


@dataclass(frozen=True, repr=False)
class LayerPlan:
    """The chain that replaces one layer of geometry `spec`; `macs` of one image are (before, after).

    `chain` is what runs: the method's stages at this rank, or, with a `lowering`, `lowering.lower` of them.
    """

    spec: ConvSpec
    method: str
    rank: Rank
    chain: Chain
    macs: Pair = (0, 0)
    options: dict[str, Any] = field(default_factory=dict)
    lowering: str = ""

    @property
    def params(self) -> Pair:
        """Weights and biases as (before, after)."""
        return self.spec.params, chain_params(self.chain)

    def __repr__(self) -> str:
        return _layer_plan_in_words(self)


@dataclass(frozen=True)
class Narrowed:
    """A layer that computes with fewer channels: its geometry before and `now`, its MACs on one image before and after.

    In a depthwise convolution the groups are fewer with the channels.
    """

    spec: ConvSpec
    now: ConvSpec
    macs: Pair = (0, 0)

    @property
    def params(self) -> Pair:
        """Weights and biases as (before, after)."""
        return self.spec.params, self.now.params

    @property
    def rank(self) -> Rank:
        """The channels that it takes and gives."""
        return self.now.in_channels, self.now.out_channels


@dataclass(repr=False)
class Plan:
    """The chain of each layer that is replaced; `kept` holds the reason for every other layer.

    First of all the layers of `narrowed` are left with fewer channels, and the modules of `channels`, which have
    numbers for each channel, with so many; `layers` then tells of the network that this gives.

    `memory_format` is the order in memory that the whole network is put in: `contiguous`, `channels_last`, or "" for
    the one it is in. For a budget, `rises` predicts for each layer how much of the accuracy it costs (nats an image
    under a metric in nats), and `achieved` is the share of the network that is left, by the name of the cost. For a
    budget of latency, `times` predicts for each layer the milliseconds that it takes before and after.
    `input_shape` [c, h, w] is that of the image it was made with, where that is known.
    """

    layers: dict[str, LayerPlan] = field(default_factory=dict)
    narrowed: dict[str, Narrowed] = field(default_factory=dict, kw_only=True)
    channels: dict[str, int] = field(default_factory=dict, kw_only=True)
    kept: dict[str, str] = field(default_factory=dict)
    metric: str = DEFAULT
    memory_format: str = ""
    rises: dict[str, float] = field(default_factory=dict)
    achieved: dict[str, float] = field(default_factory=dict)
    times: dict[str, tuple[float, float]] = field(default_factory=dict, kw_only=True)
    input_shape: tuple[int, ...] = field(default=(), compare=False)

    @property
    def changes(self) -> dict[str, LayerPlan | Narrowed]:
        """What every layer becomes that changes, the first change first; a chain of a narrowed layer counts."""
        return {**self.narrowed, **self.layers}

    def __repr__(self) -> str:
        return _plan_in_words(self)


@dataclass(frozen=True)
class Budget:
    """The share of the original to keep, each in (0, 1]; several hold together. UsageError for anything else."""

    macs: float | None = None
    params: float | None = None
    latency: float | None = None

    def __post_init__(self) -> None:
        for name, share in self.shares.items():
            if not 0 < share <= 1:
                raise UsageError(f"budget {name}={share} is not a share of the original in (0, 1], such as 0.5")
        if not self.shares:
            raise UsageError("a budget needs a share of macs, params or latency, such as macs=0.5")

    @property
    def shares(self) -> dict[str, float]:
        """The shares that were given, by name."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None}

    def __str__(self) -> str:
        return ", ".join(f"{name}={share:g}" for name, share in self.shares.items())


def _layer_plan_in_words(plan: LayerPlan) -> str:
    """One line: the layer, the method with its rank, and params and MACs before and after."""
    rank = "×".join(map(str, plan.rank))
    costs = (f"{what} {human(a)} → {human(b)}" for what, (a, b) in (("params", plan.params), ("MACs", plan.macs)))
    return f"<{plan.spec}: {plan.method} {rank}, {', '.join(costs)}>"


def _plan_in_words(plan: Plan) -> str:
    """A line on the whole plan, and one each for its first layers."""
    shares = "".join(f", {share:.3g} of the {cost}" for cost, share in plan.achieved.items())
    narrowed = f", {len(plan.narrowed)} narrowed" if plan.narrowed else ""
    done = f"{len(plan.layers)} layers replaced{narrowed}, {len(plan.kept)} kept"
    lines = [f"<Plan: {done}, metric {plan.metric}{shares}"]
    names = list(plan.layers)
    width = max(map(len, names[:LISTED]), default=0)
    for name in names[:LISTED]:
        layer = plan.layers[name]
        lines.append(f"  {name:{width}}  {layer.spec}: {layer.method} {'×'.join(map(str, layer.rank))}")
    if len(names) > LISTED:
        lines.append(f"  … {len(names) - LISTED} more in .layers")
    return "\n".join(lines) + ">"
