"""What is measured without changing anything: accuracy, cost, latency, the layers of a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cnncompress.chains.modules import spec_of
from cnncompress.chains.plan import LayerPlan
from cnncompress.config import ModelSettings
from cnncompress.errors import DataError, UsageError
from cnncompress.latency.network import latency, layer_latencies
from cnncompress.latency.timed import Latency
from cnncompress.network.costs import Profile
from cnncompress.network.device import resolve_device
from cnncompress.network.evaluate import Evaluation, paired_error
from cnncompress.network.layers import layers_of, refuse_module
from cnncompress.network.memory_format import to_memory_format
from cnncompress.network.profile import profile
from cnncompress.network.standing_in import examine
from cnncompress.pipeline.formats import beside, fastest, in_formats
from cnncompress.pipeline.images import evaluate_on, open_data
from cnncompress.pipeline.opened import Opened, need_layers, open_model, open_run
from cnncompress.pipeline.original import NOT_AT_HAND, original_network, original_of, with_accuracy
from cnncompress.planning import choose_method, describe_methods
from cnncompress.programs.export import ExportReport, export_onnx, export_pt2
from cnncompress.reporting import Report, merge
from cnncompress.reporting.stored import stored_report, stored_reports
from cnncompress.terminal.console import LOG, Steps, bar


def run_evaluate(settings: ModelSettings) -> tuple[str, Evaluation]:
    """Name and accuracy of a network or run on the evaluation images of `settings.data`."""
    if settings.data is None:
        raise UsageError("nothing to evaluate on; give --data FOLDER, cifar10:ROOT or digits")
    resolve_device(settings.device)
    steps = Steps(["load", "evaluate"])
    steps.announce("load", f"load {settings.model}")
    opened = open_model(settings)
    data = open_data(settings, opened, "accuracy")
    steps.announce("evaluate", f"evaluate on {settings.data}")
    result = evaluate_on(opened.model, data, settings)
    if result is None:
        raise DataError(f"{settings.data} holds no evaluation images")
    return opened.name, result


NOISE = 0.03  # share by which two times of the same layer may differ


@dataclasses.dataclass
class Timing:
    """How latency is measured; `memory_format` None is that of each network."""

    batch_size: int = 1
    threads: int | None = None
    device: str = "auto"
    memory_format: str | None = None

    def settings(self) -> dict[str, Any]:
        """The arguments of `latency`, without the memory format."""
        return {"batch": self.batch_size, "threads": self.threads, "device": str(resolve_device(self.device))}

    def asked(self) -> dict[str, Any]:
        """The memory format as an argument of `latency`."""
        return {"memory_format": self.memory_format}


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


def run_profile(settings: ModelSettings, timing: Timing) -> tuple[Opened, Profile, dict[str, Latency]]:
    """Params, MACs and latency of a network or, in turns with its original, of a run; see `measure_latency`."""
    resolve_device(timing.device)
    steps = Steps(["load", "time"])
    steps.announce("load", f"load {settings.model}")
    opened = open_model(settings)
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


@dataclasses.dataclass
class Inspected:
    """One layer: what it is, what it costs, which methods apply, and the rank that keeps a share of its energy."""

    layer: str
    shape: str
    params: int
    macs: int
    methods: list[str]
    full_rank: int | None = None
    rank_at: dict[float, int] = dataclasses.field(default_factory=dict)
    note: str = ""


def run_inspect(settings: ModelSettings) -> tuple[Opened, list[Inspected]]:
    """A network or run and its layers."""
    opened = open_model(settings)
    need_layers(opened, "list the layers of")
    return opened, inspect_layers(opened.model, opened.example())


def inspect_layers(
    model: nn.Module, example: torch.Tensor, energies: Sequence[float] = (0.5, 0.9, 0.99)
) -> list[Inspected]:
    """The layers of a network in the order of their calls on `example` [n, 3, h, w]; no energies on the meta device.

    What it computes beside them comes last, most MACs first.
    """
    modules = layers_of(model)
    calls = examine(model, example)
    rows = []
    order = sorted(modules, key=lambda n: calls[n].order if n in calls else len(calls))
    for name in bar(order, desc="inspect", unit="layer", leave=False):
        module, spec = modules[name], spec_of(modules[name])
        reasons = describe_methods(spec)
        row = Inspected(name, str(spec), spec.params, 0, [m for m, why in reasons.items() if why is None])
        if name not in calls:
            row.methods, row.note = [], "not called as a layer"
        else:
            row.macs = calls[name].macs
            unfit = "" if row.methods else next(why for why in reasons.values() if why)
            row.note = refuse_module(module) or calls[name].kept or unfit
        if not row.note:
            method = choose_method("auto", spec)[0]
            row.full_rank = method.full_rank(spec)[0]
            weight = module.weight.reshape(spec.weight_shape)
            values = None if weight.is_meta else method.spectrum(weight, spec)
            if values is not None:
                row.rank_at = {share: rank_for_energy(values, share) for share in energies}
        rows.append(row)
    rest = profile(model, example).others
    return [*rows, *(Inspected(o.name, o.kind, o.params, o.macs, [], note=o.reason) for o in rest)]


def rank_for_energy(singular_values: torch.Tensor, share: float) -> int:
    """The smallest rank whose squared singular values [groups, n] hold `share` of the sum, in every group."""
    energy = singular_values.square().cumsum(-1)
    reached = energy >= share * energy[..., -1:] * (1 - 1e-12)
    return int(reached.int().argmax(-1).max()) + 1


def run_export(
    run: Path, format_: str, output: Path | None, force: bool, trust_code: bool = False, opset: int | None = None
) -> ExportReport:
    """Export the network of a run, checked against it before the file appears; `opset` is for ONNX alone."""
    if opset is not None and format_ != "onnx":
        raise UsageError(f"--opset is for --format onnx, not {format_}")
    settings = ModelSettings(model=str(run), trust_code=trust_code)
    steps = Steps(["load", "export"])
    steps.announce("load", f"load {run}")
    opened = open_run(run, settings)
    suffix = {"onnx": ".onnx", "pt2": ".pt2"}[format_]
    target = output or _named(run).with_name(_named(run).name + suffix)
    steps.announce("export", f"write {target}, run it and compare")
    if format_ == "pt2":
        return export_pt2(opened.model, opened.example(2), target, force=force)
    return export_onnx(opened.model, opened.example(2), target, force=force, opset=opset)


def _named(path: Path) -> Path:
    """The path with a name at its end: `.`, `..` and `/` have none."""
    return path if path.name not in ("", "..") else path.resolve()


def run_report(runs: Sequence[Path], settings: ModelSettings, timing: Timing | None) -> Report:
    """The tables of one or more runs; measured again on `settings.data`, and timed where `timing` is given."""
    if settings.data is None and timing is None:
        return stored_reports(runs)
    resolve_device(settings.device)
    reports = {}
    for path in runs:
        report, opened = stored_report(path), open_run(path, settings)
        if settings.data is not None:
            LOG.info("evaluate %s on %s", path, settings.data)
            remeasure(report, opened, settings)
        if timing is not None:
            LOG.info("time %s beside its original", path)
            add_latency(report, measure_latency(opened, timing))
        reports[str(path)] = report
    return merge(reports)


def remeasure(report: Report, opened: Opened, settings: ModelSettings) -> None:
    """Measure the original's and the newest row on `settings.data`; the rows between lose their accuracy."""
    data = open_data(settings, opened, "accuracy")
    networks = {0: original_network(opened), len(report.rows) - 1: opened.model}
    if networks[0] is None:
        report.notes.append(NOT_AT_HAND)
    results = {i: evaluate_on(network, data, settings) for i, network in networks.items() if network is not None}
    for i, row in enumerate(report.rows):
        error = paired_error(results.get(0), results.get(i)) if i else None
        report.rows[i] = dataclasses.replace(with_accuracy(row, results.get(i), data), top1_error=error)


def add_latency(report: Report, measured: dict[str, Latency]) -> None:
    """Put measured latencies into the original's row and the rows of the compressed architecture."""
    *before, newest = measured.values()
    for i, row in enumerate(report.rows):
        found = newest if row.kind != "original" else before[-1] if before else None
        report.rows[i] = dataclasses.replace(row, latency=found)
