"""How long a network and its layers take, beside the original in turns, in the runtimes that are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from cnncompress.chains.plan import LayerPlan, Narrowed
from cnncompress.errors import UsageError
from cnncompress.latency.network import latency, layer_latencies
from cnncompress.latency.runtimes import get_runtime
from cnncompress.latency.setting import TimingSetting
from cnncompress.latency.timed import Latency
from cnncompress.names.methods import SELECT
from cnncompress.network.kinds import spec_of
from cnncompress.network.memory_format import to_memory_format
from cnncompress.pipeline.formats import beside, fastest, in_formats
from cnncompress.pipeline.opened import Opened, need_layers
from cnncompress.pipeline.original import original_of
from cnncompress.reporting import Report

NOISE_SHARE = 0.03  # share by which two times of the same layer may differ


def measure_latency(opened: Opened, setting: TimingSetting) -> dict[str, Latency]:
    """Latency of a network and, for a run, of its original in turns with it: "original, FORMAT", the fastest one last.

    The original runs in every memory format that it can, as one alone may save much; where the setting names one, all
    run in that one. It is called "original" in a runtime for which they are all the same.
    """
    original, example = original_of(opened.run), opened.example()
    if original is None:
        return latency({opened.name: opened.model}, example, setting)
    asked = setting.memory_format
    models = {asked: original} if asked else in_formats(original, example, setting)
    names = {layout: _name_of(layout, setting) for layout in models}
    networks = {names[layout]: model for layout, model in models.items()} | {opened.name: opened.model}
    latencies = latency(networks, example, setting)
    times = {layout: latencies[names[layout]] for layout in models}
    best = fastest(times)
    order = [layout for layout in models if layout != best] + [best]
    return {names[k]: times[k] for k in order} | {opened.name: beside(times[best], latencies[opened.name])}


def _name_of(layout: str, setting: TimingSetting) -> str:
    return f"original, {layout}" if get_runtime(setting.runtime).memory_formats else "original"


def add_latencies(report: Report, measured: Sequence[dict[str, Latency]]) -> None:
    """Put what `measure_latency` found in each runtime into the rows of the original and of its successors."""
    newest = [list(times.values())[-1] for times in measured]
    before = [list(times.values())[-2] for times in measured if len(times) > 1]
    report.rows[:] = [row.timed(before if row.kind == "original" else newest) for row in report.rows]


@dataclass
class LayerTime:
    """Milliseconds of a layer in a forward pass, and for a run those of the original's layer of the same name.

    `becomes` is empty where the layer is as it was.
    """

    layer: str
    shape: str
    becomes: str
    after: float
    before: float | None = None

    @property
    def slower(self) -> bool:
        """True where a chain takes longer than the layer it replaced, by more than the noise."""
        return bool(self.becomes) and self.before is not None and self.after > (1 + NOISE_SHARE) * self.before


def layer_times(opened: Opened, setting: TimingSetting, original_format: str = "") -> list[LayerTime]:
    """The time of each layer of a network or, in turns with the original, of a run, in the order of calls.

    The original runs in `original_format`, "" for its own. UsageError where the runtime does not show its layers.
    """
    need_layers(opened, "time the layers of")
    original = original_of(opened.run)
    there = {} if original is None else {"original": to_memory_format(original, original_format)}
    models: dict[str, nn.Module] = {**there, opened.name: opened.model}
    times = layer_latencies(models, opened.example(), setting)
    if times is None:
        raise UsageError(f"the runtime {setting.runtime} does not show what layers take; leave out --layers")
    before, plans = times.get("original", {}), opened.provenance.plan.changes
    rows = []
    for name, time in times[opened.name].items():
        plan = plans.get(name)
        shape = str(plan.spec if plan else spec_of(opened.model.get_submodule(name)))
        becomes = describe_plan(plan) if plan is not None else ""
        rows.append(LayerTime(name, shape, becomes, time.median, before[name].median if name in before else None))
    return rows


def describe_plan(plan: LayerPlan | Narrowed) -> str:
    """Method, rank and lowering of a layer in a few words."""
    if isinstance(plan, Narrowed):
        return f"{SELECT} {'×'.join(map(str, plan.rank))}"
    return " ".join(filter(None, (plan.method, "×".join(map(str, plan.rank)), plan.lowering)))
