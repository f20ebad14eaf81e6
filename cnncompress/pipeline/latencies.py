"""How long a network and its layers take, beside the original in turns, in the runtimes that are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from cnncompress.chains.plan import LayerPlan, Narrowed
from cnncompress.latency.network import latency, layer_latencies
from cnncompress.latency.runtimes import get_runtime
from cnncompress.latency.setting import TimingSetting
from cnncompress.latency.timed import Latency
from cnncompress.names.methods import SELECT
from cnncompress.network.compressed import Compressed
from cnncompress.network.kinds import spec_of
from cnncompress.network.memory_format import to_memory_format
from cnncompress.pipeline.formats import beside, fastest, in_formats
from cnncompress.pipeline.opened import Opened, is_program, need_layers
from cnncompress.pipeline.original import original_of
from cnncompress.reporting import Report
from cnncompress.reporting.layer_times import LayerTime, LayerTimes


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


def layer_times(opened: Opened, setting: TimingSetting, original_format: str = "") -> list[LayerTime] | None:
    """The time of each layer of a network or, in turns with the original, of a run, in the order of calls.

    The original runs in `original_format`, "" for its own. None where the runtime does not show its layers.
    """
    need_layers(opened, "time the layers of")
    original = original_of(opened.run)
    before = None if original is None else to_memory_format(original, original_format)
    return times_of_layers(before, opened.compressed, opened.example(), setting)


def times_of_layers(
    original: nn.Module | None, small: Compressed, example: Tensor, setting: TimingSetting
) -> list[LayerTime] | None:
    """The time of each layer of a network, in turns with its original's; None where the runtime does not show them."""
    models = ({} if original is None else {"original": original}) | {"": small.network}
    times = layer_latencies(models, example, setting)
    if times is None:
        return None
    before, plan = times.get("original", {}), small.plan
    rows = []
    for name, time in times[""].items():
        change = plan.changes.get(name)
        shape = str(change.spec if change else spec_of(small.network.get_submodule(name)))
        becomes = describe_plan(change) if change is not None else ""
        was = before[name].median if name in before else None
        rows.append(LayerTime(name, shape, becomes, time.median, was, plan.times.get(name)))
    return rows


def where_time_goes(
    name: str,
    networks: tuple[nn.Module, Compressed],
    example: Tensor,
    times: Iterable[tuple[TimingSetting, tuple[Latency, Latency]]],
) -> list[LayerTimes]:
    """The times of the layers of a network, in turns with its original: of both `networks`, the original first.

    They are of the first of the settings whose runtime shows layers, and none where none does. `times` are those of
    both networks in each setting, and the original runs in the memory format that it was timed in.
    """
    original, small = networks
    for setting, (then, now) in times:
        there = in_formats(original, example, setting).get(then.setting.memory_format, original)
        found = times_of_layers(there, small, example, setting)
        if found is not None:
            return [LayerTimes(name, now, tuple(found))]
    return []


def times_beside(
    opened: Opened, name: str, settings: Sequence[TimingSetting], measured: Sequence[Mapping[str, Latency]]
) -> list[LayerTimes]:
    """As `where_time_goes`, of a run and of what `measure_latency` found in each setting."""
    original = original_of(opened.run)
    if original is None or is_program(opened):
        return []
    pairs = []
    for times in measured:
        *_, then, now = times.values()
        pairs.append((then, now))
    return where_time_goes(name, (original, opened.compressed), opened.example(), zip(settings, pairs, strict=True))


def describe_plan(plan: LayerPlan | Narrowed) -> str:
    """Method, rank and lowering of a layer in a few words."""
    if isinstance(plan, Narrowed):
        return f"{SELECT} {'×'.join(map(str, plan.rank))}"
    return " ".join(filter(None, (plan.method, "×".join(map(str, plan.rank)), plan.lowering)))
