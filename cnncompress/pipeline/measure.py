"""What is measured without changing anything: accuracy, cost, latency."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from cnncompress.chains.modules import spec_of
from cnncompress.chains.plan import LayerPlan
from cnncompress.errors import DataError, UsageError
from cnncompress.latency.network import latency, layer_latencies
from cnncompress.latency.timed import Latency
from cnncompress.network.costs import Profile
from cnncompress.network.device import resolve_device
from cnncompress.network.evaluate import Evaluation, paired_error
from cnncompress.network.memory_format import to_memory_format
from cnncompress.network.profile import profile
from cnncompress.pipeline.asked import ImagesAsked, NetworkAsked, Timing
from cnncompress.pipeline.formats import beside, fastest, in_formats
from cnncompress.pipeline.images import evaluate_on, open_data
from cnncompress.pipeline.opened import Opened, need_layers, open_network, open_run
from cnncompress.pipeline.original import NOT_AT_HAND, original_network, original_of, with_accuracy
from cnncompress.reporting import Report, merge
from cnncompress.reporting.stored import stored_report, stored_reports
from cnncompress.terminal.console import LOG, Steps


def evaluate_network(asked: NetworkAsked, images: ImagesAsked) -> tuple[str, Evaluation]:
    """Name and accuracy of a network or run on the evaluation images of a data set."""
    if images.spec is None:
        raise UsageError("nothing to evaluate on; give --data FOLDER, cifar10:ROOT or digits")
    resolve_device(images.device)
    steps = Steps(["load", "evaluate"])
    steps.announce("load", f"load {asked.name}")
    opened = open_network(asked)
    data = open_data(images.spec, opened, "accuracy")
    steps.announce("evaluate", f"evaluate on {images.spec}")
    result = evaluate_on(opened.model, data, images)
    if result is None:
        raise DataError(f"{images.spec} holds no evaluation images")
    return opened.name, result


NOISE = 0.03  # share by which two times of the same layer may differ


def measure_latency(opened: Opened, timing: Timing) -> dict[str, Latency]:
    """Latency of a network and, for a run, of its original in turns with it: "original, FORMAT", the fastest one last.

    The original runs in every memory format that it can, as one alone may save much; where `timing` names one, all run
    in that one.
    """
    original, asked = original_of(opened.run), timing.memory_format
    if original is None:
        return latency({opened.name: opened.model}, opened.example(), **timing.settings(), **timing.asked())
    models = {asked: original} if asked else in_formats(original, opened.example())
    both = {f"original, {name}": model for name, model in models.items()} | {opened.name: opened.model}
    found = latency(both, opened.example(), **timing.settings(), **timing.asked())
    times = {name: found[f"original, {name}"] for name in models}
    best = fastest(times)
    order = [name for name in models if name != best] + [best]
    return {f"original, {name}": times[name] for name in order} | {opened.name: beside(times[best], found[opened.name])}


def profile_network(asked: NetworkAsked, timing: Timing) -> tuple[Opened, Profile, dict[str, Latency]]:
    """Params, MACs and latency of a network or, in turns with its original, of a run; see `measure_latency`."""
    resolve_device(timing.device)
    steps = Steps(["load", "time"])
    steps.announce("load", f"load {asked.name}")
    opened = open_network(asked)
    cost = profile(opened.model, opened.example())
    steps.announce("time", "time the network beside its original" if opened.run else "time the network")
    return opened, cost, measure_latency(opened, timing)


@dataclasses.dataclass
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
        return bool(self.becomes) and self.before is not None and self.after > (1 + NOISE) * self.before


def layer_times(opened: Opened, timing: Timing, original_format: str = "") -> list[LayerTime]:
    """The time of each layer of a network or, in turns with the original, of a run, in the order of calls.

    The original runs in `original_format`, "" for its own.
    """
    need_layers(opened, "time the layers of")
    original = original_of(opened.run)
    there = {} if original is None else {"original": to_memory_format(original, original_format)}
    models = {**there, opened.name: opened.model}
    found = layer_latencies(models, opened.example(), **timing.settings(), **timing.asked())
    before, plans = found.get("original", {}), opened.provenance.plan.layers
    rows = []
    for name, time in found[opened.name].items():
        module, plan = opened.model.get_submodule(name), plans.get(name)
        shape = str(plan.spec if plan else spec_of(module))
        becomes = describe_plan(plan) if plan else ""
        rows.append(LayerTime(name, shape, becomes, time.median, before[name].median if name in before else None))
    return rows


def describe_plan(plan: LayerPlan) -> str:
    """Method, rank and lowering of a layer in a few words."""
    return " ".join(filter(None, (plan.method, "×".join(map(str, plan.rank)), plan.lowering)))


def report_on(runs: Sequence[Path], images: ImagesAsked, timing: Timing | None, trust_code: bool = False) -> Report:
    """The tables of one or more runs; measured again on `images`, and timed where `timing` is given."""
    if images.spec is None and timing is None:
        return stored_reports(runs)
    resolve_device(images.device)
    reports = {}
    for path in runs:
        report, opened = stored_report(path), open_run(path, NetworkAsked(trust_code=trust_code))
        if images.spec is not None:
            LOG.info("evaluate %s on %s", path, images.spec)
            remeasure(report, opened, images)
        if timing is not None:
            LOG.info("time %s beside its original", path)
            add_latency(report, measure_latency(opened, timing))
        reports[str(path)] = report
    return merge(reports)


def remeasure(report: Report, opened: Opened, images: ImagesAsked) -> None:
    """Measure the original's and the newest row on a data set; the rows between lose their accuracy."""
    data = open_data(images.spec, opened, "accuracy")
    networks = {0: original_network(opened), len(report.rows) - 1: opened.model}
    if networks[0] is None:
        report.notes.append(NOT_AT_HAND)
    results = {i: evaluate_on(network, data, images) for i, network in networks.items() if network is not None}
    for i, row in enumerate(report.rows):
        error = paired_error(results.get(0), results.get(i)) if i else None
        report.rows[i] = dataclasses.replace(with_accuracy(row, results.get(i), data), top1_error=error)


def add_latency(report: Report, measured: dict[str, Latency]) -> None:
    """Put measured latencies into the original's row and the rows of the compressed architecture."""
    *before, newest = measured.values()
    for i, row in enumerate(report.rows):
        found = newest if row.kind != "original" else before[-1] if before else None
        report.rows[i] = dataclasses.replace(row, latency=found)
