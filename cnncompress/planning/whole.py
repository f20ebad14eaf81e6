"""What a whole network takes after a plan: measured, before anything is fitted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from cnncompress.chains.plan import Plan
from cnncompress.chains.spec import Call
from cnncompress.latency.chains import fill_randomly
from cnncompress.latency.clock import Rounds
from cnncompress.latency.machine import of_network
from cnncompress.latency.network import latency, layer_latencies
from cnncompress.latency.setting import TimingSetting
from cnncompress.latency.table import LatencyTable
from cnncompress.latency.wanted import Wanted
from cnncompress.network.copying import clone
from cnncompress.network.kinds import weight_of
from cnncompress.network.memory_format import memory_format_of, to_memory_format
from cnncompress.network.narrow import narrow
from cnncompress.network.swap import Places, build_chain

ROUNDS = Rounds(least=12, seconds=0.5)


def network_clock(
    model: nn.Module, example: Tensor, original_ms: float, setting: TimingSetting | None = None, memory_format: str = ""
) -> Callable[[Plan], float]:
    """A function that measures the milliseconds of the network after a plan, with random numbers for kernels.

    It runs in turns with `model` in its own memory format, which is taken to need `original_ms`; what counts are the
    tenth percentiles, as other work on the machine only ever adds to a time. The network after the plan is in
    `memory_format`, "" for its own.
    """

    def clock(plan: Plan) -> float:
        models = {"original": model, "planned": to_memory_format(with_random_chains(model, plan), memory_format)}
        times = latency(models, example, setting, ROUNDS, quickly=True)
        return original_ms * times["planned"].p10 / times["original"].p10

    return clock


def settled_table(
    model: nn.Module,
    example: Tensor,
    calls: Mapping[str, Call],
    setting: TimingSetting,
    wanted: Sequence[Wanted] = (),
    seconds: float = math.inf,
) -> LatencyTable:
    """Times of layers and of the `wanted` chains of `model`, scaled to what layers take within it.

    Chains are measured in some `seconds`, or little more. Where the runtime does not show what layers take, times are
    scaled down until the layers take no longer than the network.
    """
    own = of_network(setting, model)
    table = LatencyTable(own)
    table.learn(wanted, seconds)
    within = layer_latencies({"": model}, example, own)
    if within is not None:
        table.settle(calls, {name: one.p10 for name, one in within[""].items()})
        return table
    alone = {name: table.dense(call) for name, call in calls.items()}
    whole = latency({"": model}, example, own, ROUNDS)[""].p10
    scale = min(1.0, whole / max(sum(alone.values()), 1e-9))
    table.settle(calls, {name: scale * ms for name, ms in alone.items()}, seen=False)
    return table


def with_random_chains(model: nn.Module, plan: Plan) -> nn.Module:
    """A copy of a network with the chains of a plan, whose kernels are random but keep the scale of what they see."""
    small = narrow(clone(model), plan)
    places = Places(small)
    for name, layer_plan in plan.layers.items():
        module = small.get_submodule(name)
        chain = build_chain(layer_plan, None, module).to_empty(device=weight_of(module).device)
        fill_randomly(chain)
        places.swap(name, chain)
    return to_memory_format(small, plan.memory_format or memory_format_of(model))
