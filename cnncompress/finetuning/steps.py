"""The steps of a cascade: which layers of a plan they take, what they freeze, and plans that have no such steps."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from cnncompress.chains.modules import FactoredLayer
from cnncompress.chains.plan import LayerPlan, Plan
from cnncompress.errors import UsageError
from cnncompress.finetuning.checkpoints import tensors_of
from cnncompress.network.copying import clone
from cnncompress.network.kinds import spec_of, weight_of
from cnncompress.network.layers import layers_of
from cnncompress.network.memory_format import to_memory_format
from cnncompress.network.swap import Places, build_chain
from cnncompress.network.trace import trace

OTHERWISE = "; give --schedule all or upper"


@dataclass(frozen=True)
class Step:
    """Step `number`, from 1 on, of a cascade: the layers that it decomposes, in network order."""

    number: int
    layers: Mapping[str, LayerPlan]

    @property
    def words(self) -> str:
        """Its layers with their methods and ranks."""
        return "; ".join(f"{n}, {p.method} rank {'×'.join(map(str, p.rank))}" for n, p in self.layers.items())


def steps_of(plan: Plan, original: nn.Module, example: Tensor, group: int) -> list[Step]:
    """The planned layers in the order of their calls on `example` [n, c, h, w], `group` of them in a step.

    UsageError for a plan that a cascade cannot follow from the original network on.
    """
    if plan.narrowed:
        raise UsageError(
            f"a cascade cannot take {next(iter(plan.narrowed))} alone: the plan leaves it, and the layers around it, "
            f"with fewer channels (select){OTHERWISE}"
        )
    if not plan.layers:
        raise UsageError("a cascade needs decomposed layers, and the network has none; decompose it first")
    layers, calls = layers_of(original), trace(original, example)
    for name, planned in plan.layers.items():
        if around := next((other for other in plan.layers if name.startswith(f"{other}.")), ""):
            raise UsageError(f"a cascade cannot take {name}: it is a part of the chain of {around}{OTHERWISE}")
        if name not in layers or spec_of(layers[name]) != planned.spec:
            found = spec_of(layers[name]) if name in layers else "no layer"
            raise UsageError(
                f"{name} is {found} in the original and {planned.spec} in the plan: give the network that this one was "
                "made of"
            )
        uses = len(calls[name].sizes) if name in calls else 0
        if uses != 1:
            raise UsageError(
                f"a cascade cannot take {name}: the network calls it {uses} times, so that no layers are all above "
                f"it{OTHERWISE}"
            )
    order = sorted(plan.layers, key=lambda name: calls[name].order)
    parts = [order[start : start + group] for start in range(0, len(order), group)]
    return [Step(i, {name: plan.layers[name] for name in part}) for i, part in enumerate(parts, 1)]


def of_layers(plan: Plan, names: Iterable[str]) -> Plan:
    """The part of a plan that tells of some layers."""
    return Plan({name: plan.layers[name] for name in names}, metric=plan.metric, memory_format=plan.memory_format)


def in_short(plan: Plan) -> str:
    """Sixteen hexadecimal digits that tell one plan from another."""
    told = [(name, layer.method, layer.rank, layer.options, layer.lowering) for name, layer in plan.layers.items()]
    return hashlib.sha256(repr((plan.metric, plan.memory_format, told)).encode()).hexdigest()[:16]


def with_chains(original: nn.Module, plan: Plan, names: Iterable[str]) -> nn.Module:
    """A copy of a network with the chains of some layers, whose values are arbitrary."""
    network = clone(original)
    places = Places(network)
    for name in names:
        layer = network.get_submodule(name)
        planned = plan.layers[name]
        blank = FactoredLayer(planned.chain, planned.lowering, device="cpu", dtype=weight_of(layer).dtype)
        places.swap(name, build_chain(planned, blank.kernels(), layer))
    return to_memory_format(network, plan.memory_format)


def check_made_of(model: nn.Module, original: nn.Module, plan: Plan) -> None:
    """UsageError unless the plan makes a network of the same tensors as `model` of the original."""
    again = with_chains(original, plan, plan.layers)
    found, made = ({name: t.shape for name, t in tensors_of(m).items()} for m in (model, again))
    if found != made:
        other = next(n for n in (*found, *made) if found.get(n) != made.get(n))
        raise UsageError(f"the plan does not make this network of the original: {other} differs; give its original")
