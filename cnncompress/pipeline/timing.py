"""Milliseconds of an original and of what becomes of it, in the memory formats that they run in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from cnncompress.chains.plan import Plan
from cnncompress.errors import CompressError, UsageError
from cnncompress.latency.busy import wait_for_quiet
from cnncompress.latency.machine import complete
from cnncompress.latency.network import latency
from cnncompress.latency.setting import TimingSetting
from cnncompress.latency.timed import Latency
from cnncompress.network.memory_format import memory_format_of
from cnncompress.network.subject import Subject
from cnncompress.pipeline.asked import Aim
from cnncompress.pipeline.formats import beside, converted, fastest, in_formats, in_words
from cnncompress.pipeline.notes import Note, notes
from cnncompress.planning import Candidates, LatencyModel, network_clock, settled_table


def check_timings(settings: Sequence[TimingSetting]) -> None:
    """Before any work: UsageError or CompressError for a setting in which nothing can be timed here."""
    for setting in settings:
        complete(setting)


def check_format(model: nn.Module, example: Tensor, memory_format: str | None) -> None:
    """UsageError where the network does not run in the memory format that was asked for."""
    if memory_format in (None, "", memory_format_of(model)):
        return
    try:
        converted(model, example, str(memory_format))
    except CompressError as error:
        raise UsageError(f"this network does not run in the memory format {memory_format}: {error}") from error


@dataclass(frozen=True)
class TimedFormats:
    """A network by the memory formats that it runs in, its own first, and its latency in each."""

    networks: Mapping[str, nn.Module]
    latencies: Mapping[str, Latency]

    @property
    def reference(self) -> str:
        """The memory format that the network is fastest in, which shares of latency are of."""
        return fastest(self.latencies)


def originals_in(subject: Subject, setting: TimingSetting, memory_format: str) -> dict[str, nn.Module]:
    """The original in every memory format that it runs in, or that the runtime tells apart.

    `memory_format` is the one asked for, which is among them; "" for none.
    """
    networks = in_formats(subject.network, subject.example, setting)
    if memory_format and memory_format not in networks:
        return {memory_format: converted(subject.network, subject.example, memory_format)}
    return networks


def latency_model(
    candidates: Candidates, timed: TimedFormats, setting: TimingSetting, memory_format: str, seconds: float
) -> LatencyModel:
    """What budgets of latency need to know, in the memory format asked for, or else in the fastest.

    Chains are measured in some `seconds`, or little more.
    """
    subject, reference = candidates.subject, timed.reference
    planned = memory_format or reference
    network, example = timed.networks[planned], subject.example
    table = settled_table(network, example, subject.calls, setting, candidates.wanted, seconds)
    original, best = timed.latencies[planned].p10, timed.latencies[reference].p10  # as chains: other work only adds
    clock = network_clock(timed.networks[reference], example, best, setting, planned)
    return LatencyModel(table, original, best, clock)


@dataclass(frozen=True)
class TimedResult:
    """A compressed network in the memory format that it is to be in.

    `times` are the latencies of the original and of the network in each runtime, none where they could not be measured.
    """

    network: nn.Module
    memory_format: str
    times: tuple[tuple[Latency, Latency], ...] = ()
    notes: tuple[Note, ...] = ()


def time_result(
    original: nn.Module, small: nn.Module, plan: Plan, example: Tensor, aim: Aim, settings: Sequence[TimingSetting]
) -> TimedResult:
    """The network of a plan, timed in turns with the original in each runtime.

    It is put in the memory format that it is fastest in, in the first one, unless the plan names one. Where no budget
    of latency asks for times, a network that cannot be timed has none, and a note tells why.
    """
    first, *further = settings
    try:
        busy = wait_for_quiet(settings)
        models = {plan.memory_format: small} if plan.memory_format else in_formats(small, example, first)
        originals, latencies = _beside(original, models, example, first)
        own, best = next(iter(models)), fastest(latencies)
        others = [_beside(original, {best: models[best]}, example, setting) for setting in further]
    except CompressError as error:
        if aim.by_latency:
            raise
        return TimedResult(small, plan.memory_format, notes=notes("latency", f"the latency was not measured: {error}"))
    pairs = [(them[fastest(them)], ours[best]) for them, ours in ((originals, latencies), *others)]
    times = tuple((before, beside(before, after)) for before, after in pairs)
    said = [busy] if busy else []
    if best != own:
        gain = latencies[best].median / latencies[own].median
        said.append(f"saved in the memory format {best}, in which it takes {gain:.2f} of its time in {own}")
    if latencies[best].median >= times[0][0].median:
        said += slower_in_words(aim)
    said += in_words(originals)
    kept = best if best != own else plan.memory_format
    return TimedResult(models[best], kept, times, notes("latency", *said))


def slower_in_words(aim: Aim) -> list[str]:
    """What to do about a network that takes no less time than its original; nothing for ranks and plans from files."""
    if not aim.searching or aim.by_latency:
        return []
    if aim.allow_slower:
        return ["it takes longer than the original, as --allow-slower permits; without it time is a limit too"]
    return ["to plan for less time, add `--budget latency=0.9`"]


def _beside(
    original: nn.Module, models: Mapping[str, nn.Module], example: Tensor, setting: TimingSetting
) -> tuple[dict[str, Latency], dict[str, Latency]]:
    """Latency of an original in all memory formats that it runs in, and of a compressed network, all in turns."""
    named = {"original": in_formats(original, example, setting), "compressed": models}
    originals, compressed = latencies_of(named, lambda together: latency(together, example, setting))
    return originals, compressed


def latencies_of(
    named: Mapping[str, Mapping[str, nn.Module]], measure: Callable[[Mapping[str, nn.Module]], Mapping[str, Latency]]
) -> list[dict[str, Latency]]:
    """The latencies of several networks by their memory formats; `measure` times all of them in turns."""
    times = measure({f"{what}, {layout}": m for what, by in named.items() for layout, m in by.items()})
    return [{layout: times[f"{what}, {layout}"] for layout in by} for what, by in named.items()]
