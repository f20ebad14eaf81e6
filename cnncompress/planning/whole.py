"""What a whole network takes after a plan: measured, before anything is fitted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from cnncompress.chains.plan import Plan
from cnncompress.chains.spec import Call
from cnncompress.latency.chains import fill_randomly
from cnncompress.latency.network import latency, layer_latency
from cnncompress.latency.setting import TimingSetting
from cnncompress.latency.table import LatencyTable
from cnncompress.network.copying import clone
from cnncompress.network.memory_format import memory_format_of, to_memory_format
from cnncompress.network.swap import build_chain, swap

REPEATS, SECONDS = 12, 0.5  # at least, of each network


def network_clock(
    model: nn.Module, example: Tensor, original_ms: float, memory_format: str = "", **settings: Any
) -> Callable[[Plan], float]:
    """A function that measures the milliseconds of the network after a plan, with random numbers for kernels.

    It runs in turns with `model` in its own memory format, which is taken to need `original_ms`; what counts are the
    tenth percentiles, as other work on the machine only ever adds to a time. The network after the plan is in
    `memory_format`, "" for its own. `settings` are those of `profiling.latency`.
    """

    def clock(plan: Plan) -> float:
        models = {"original": model, "planned": to_memory_format(with_random_chains(model, plan), memory_format)}
        found = latency(models, example, repeats=REPEATS, min_seconds=SECONDS, **settings)
        return original_ms * found["planned"].p10 / found["original"].p10

    return clock


def settled_table(model: nn.Module, example: Tensor, calls: Mapping[str, Call], setting: TimingSetting) -> LatencyTable:
    """Times of layers and chains, scaled to what layers take within `model`, which is in the setting's format."""
    table = LatencyTable(setting)
    within = layer_latency(model, example, batch=setting.batch, threads=setting.threads, device=setting.device)
    table.settle(calls, {name: found.median for name, found in within.items()})
    return table


def with_random_chains(model: nn.Module, plan: Plan) -> nn.Module:
    """A copy of a network with the chains of a plan, whose kernels are random but keep the scale of what they see."""
    small = clone(model)
    for name, layer_plan in plan.layers.items():
        module: Any = small.get_submodule(name)
        chain = build_chain(layer_plan, None, module).to_empty(device=module.weight.device)
        fill_randomly(chain)
        swap(small, name, chain)
    return to_memory_format(small, plan.memory_format or memory_format_of(model))
