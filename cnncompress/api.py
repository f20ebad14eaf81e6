"""The whole job as functions: of networks and images in memory, and of runs; the command line calls only these.

`compress`, `finetune`, `report` and `export` are what Python users call. The functions `run_*` do what the command of
that name does: settings become small values here, and nothing below knows settings.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from cnncompress.chains.plan import Budget
from cnncompress.config import DEFAULT_BUDGET, DecomposeSettings, ExploreSettings, ModelSettings, TuneSettings
from cnncompress.errors import UsageError, nearest
from cnncompress.files.place import resolve
from cnncompress.finetuning import FinetuneResult, FinetuneSettings
from cnncompress.finetuning import finetune as train_in_place
from cnncompress.latency.setting import TimingSetting
from cnncompress.latency.timed import Latency
from cnncompress.names.metrics import DEFAULT
from cnncompress.network.compressed import Compressed, network_of, with_provenance
from cnncompress.network.costs import Profile
from cnncompress.network.evaluate import Evaluation
from cnncompress.network.inputs import input_dtype, read_batch
from cnncompress.pipeline.asked import (
    Aim,
    FitAsked,
    GridAsked,
    ImagesAsked,
    Job,
    LayersAsked,
    NetworkAsked,
    Place,
    TrainingAsked,
)
from cnncompress.pipeline.decompose import Decomposed, decompose_network
from cnncompress.pipeline.explore import Explored, explore_network
from cnncompress.pipeline.export import export_of_run
from cnncompress.pipeline.finetune import Tuned, train_run
from cnncompress.pipeline.inspect import Inspected, inspect_network
from cnncompress.pipeline.int8 import Int8Asked, int8_of_run
from cnncompress.pipeline.latencies import LayerTime, layer_times
from cnncompress.pipeline.measure import evaluate_network, profile_network, report_on
from cnncompress.pipeline.memory import compress_network
from cnncompress.pipeline.opened import Opened
from cnncompress.pipeline.table import measured_table
from cnncompress.planning import Choice
from cnncompress.programs.export import ENDINGS, EXPORTERS, ExportReport
from cnncompress.reporting import Report
from cnncompress.reporting.int8 import Int8Measured
from cnncompress.runs import load
from cnncompress.runs.lock import writing


def compress(
    model: nn.Module,
    images: Tensor,
    budget: Budget = DEFAULT_BUDGET,
    *,
    method: str = "auto",
    layers: Sequence[str] = (),
    skip: Sequence[str] = (),
    seed: int = 0,
    allow_slower: bool = False,
) -> Compressed:
    """A new network within `budget`: planned under the metric kronecker and corrected in network order.

    Where no gradient reaches its layers, the metric is data-covariance.

    `images` [n, 3, h, w] are some fifty or more inputs as the network takes them, on the CPU as the network is; no
    labels are needed. `method`, `layers` and `skip` are those of `plan`. What comes back is called as the network is,
    and goes to `save` and `export` as it is. A budget of latency needs a table of times: give it to `plan`. With
    `allow_slower` the network may take longer than the original in eager PyTorch, which is measured otherwise.

    Raises UsageError for a budget that no plan meets, or none in the original's time, and for arguments of other types,
    CompressError for a network that cannot be run.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"model is a {type(model).__name__}, not a network: load_model('resnet50').model is one")
    if not isinstance(budget, Budget):
        raise UsageError(f"budget is a {type(budget).__name__}: give Budget(macs=0.5), the share that is to be left")
    images, _ = read_batch(images, input_dtype(model), labels=False)
    if not len(images):
        raise UsageError("there are no images to calibrate on: give some fifty or more")
    asked, original = LayersAsked(method, layers=layers, skip=skip), with_provenance(model)
    return compress_network(original, images, budget, asked, seed, allow_slower)


def finetune(
    model: nn.Module | Compressed,
    train: Dataset[Any],
    val: Dataset[Any],
    settings: FinetuneSettings | None = None,
    checkpoints: str | Path | None = None,
    *,
    device: str = "auto",
    resume: bool = False,
    teacher: nn.Module | Compressed | None = None,
) -> FinetuneResult:
    """Train `model` in place; afterwards it holds the weights of the best epoch by top-1 on `val`.

    The weights before training count too, so it is never worse than before. Items of both sets are (image [3, H, W],
    class index). `settings` default to one epoch of SGD with a cosine. `checkpoints` is a folder that training can
    `resume` from, and that one process at a time trains in; without one nothing is left on the disk. `teacher` is the
    network whose answers `model` learns from, its original, for settings with `distill="logits"`.

    Raises UsageError for settings that do not fit, DataError for labels, RunError for files, CompressError where the
    loss is no longer finite.
    """
    model, settings = network_of(model), settings or FinetuneSettings()
    options: dict[str, Any] = {"device": device, "teacher": None if teacher is None else network_of(teacher)}
    if checkpoints is not None:
        with writing(resolve(checkpoints)):
            return train_in_place(model, train, val, settings, Path(checkpoints), resume=resume, **options)
    if resume:
        raise UsageError("resume needs the folder of the checkpoints: finetune(..., checkpoints=FOLDER, resume=True)")
    with tempfile.TemporaryDirectory() as folder:
        return train_in_place(model, train, val, settings, Path(folder, "checkpoints"), **options)


def report(
    *runs: str | Path, data: str | None = None, latency: bool = False, device: str = "auto", trust_code: bool = False
) -> Report:
    """Cost and accuracy of one or more runs beside their originals; `render` makes a table, CSV or JSON of it.

    `data` (as `--data`) has the accuracies measured again, `latency` the networks timed. `trust_code` is that
    of `load`. RunError for a run that cannot be read, UsageError where there is none.
    """
    if not runs:
        raise UsageError("nothing to report on; give at least one run: report('runs/vgg16')")
    if other := next((run for run in runs if not isinstance(run, str | Path)), None):
        raise UsageError(
            f"a report is on runs, which `save` writes, not on a {type(other).__name__}: give their folders"
        )
    timings = (TimingSetting(device=device),) if latency else ()
    return report_on([Path(run) for run in runs], ImagesAsked(data, device=device), timings, trust_code)


def export(
    model: nn.Module | Compressed | str | Path,
    path: str | Path,
    example: Tensor | None = None,
    *,
    format: str | None = None,
    tolerance: float | None = None,
    force: bool = False,
    trust_code: bool = False,
) -> ExportReport:
    """Write a network, or the network of a run, as one file; it is run and compared before it is in its place.

    `format` is `onnx`, `openvino` or `pt2`, by default what the file is called. `example` [n, c, h, w] is a batch of
    inputs, which a network of `load_model` or of a run knows itself. `tolerance` is relative to the largest output.
    `trust_code` is that of `load`. UsageError for an unknown format or a missing example, else as `export_onnx`.
    """
    ending = Path(path).suffix.removeprefix(".")
    kind = format or next((name for name, known in ENDINGS.items() if known == ending), ending)
    if kind not in EXPORTERS:
        raise UsageError(f"cannot export to '{kind}'{nearest(kind, EXPORTERS)}; known: {', '.join(EXPORTERS)}")
    known = with_provenance(load(model, trust_code) if isinstance(model, str | Path) else model)
    return EXPORTERS[kind](known.network, _example(known) if example is None else example, path, tolerance, force)


def _example(model: Compressed) -> Tensor:
    known = model.provenance
    if known.preprocessing is None:
        raise UsageError("the size of this network's input is not known; give export(..., example=IMAGES)")
    return Opened("network", model.network, known.preprocessing, known).example(2)


# --- what the commands do, of their settings ---


def run_decompose(settings: DecomposeSettings, command: Sequence[str]) -> Decomposed:
    """`cnncompress decompose`: load, plan, factorize, correct, measure, save; `command` is recorded in the run."""
    return decompose_network(job_of(settings.resolved()), command)


def job_of(settings: DecomposeSettings) -> Job:
    """The job that resolved settings describe, as small values."""
    aim = Aim(settings.budget, settings.max_drop, settings.plan, settings.assumes_budget, settings.allow_slower)
    special = {
        pattern: Choice(rule.method or settings.method, settings.rank if rule.rank is None else rule.rank)
        for pattern, rule in settings.per_layer.items()
    }
    ranked = "rank" in settings.model_fields_set
    asked = LayersAsked(
        settings.method, settings.rank, special, settings.layers, settings.skip, settings.multiple, ranked
    )
    fit = FitAsked(
        settings.metric or DEFAULT,
        settings.correct,
        settings.refine,
        settings.reconstruct,
        settings.calibration_images,
        settings.seed,
        settings.assumes_metric,
    )
    place = Place(settings.out, settings.force, settings.dry_run, settings.keep_statistics, settings.statistics)
    return Job(
        _network(settings),
        _images(settings),
        aim,
        asked,
        fit,
        timings=settings.timings,
        timed=bool(settings.runtime),
        table=settings.latency_table,
        memory_format=settings.memory_format or "",
        place=place,
    )


def run_explore(settings: ExploreSettings, command: Sequence[str]) -> Explored:
    """`cnncompress explore`: plan within many budgets, measure a few; `command` with a budget makes each network."""
    job = job_of(settings.resolved())
    asked = GridAsked(settings.budgets, settings.measure, settings.out, settings.force)
    place = Place(dry_run=True, statistics=settings.statistics or settings.out)
    return explore_network(dataclasses.replace(job, place=place), asked, command)


def run_finetune(settings: TuneSettings, command: Sequence[str]) -> Tuned | None:
    """`cnncompress finetune`: train the network of a run, `model`; None in the processes beside the first."""
    if settings.model is None:
        raise UsageError("no run: give RUN")
    keys = {f.name for f in dataclasses.fields(FinetuneSettings)} & set(TuneSettings.model_fields)
    training = FinetuneSettings(**{k: getattr(settings, k) for k in keys})
    asked = TrainingAsked(settings.out, settings.force, settings.resume)
    return train_run(Path(settings.model), _network(settings), _images(settings), training, asked, command)


def run_report(runs: Sequence[Path], settings: ModelSettings, timings: Sequence[TimingSetting]) -> Report:
    """`cnncompress report`: the tables of runs, measured again on data, and timed as each of `timings` says."""
    return report_on(runs, _images(settings), timings, settings.trust_code)


def run_evaluate(settings: ModelSettings) -> tuple[str, Evaluation]:
    """`cnncompress evaluate`: name and accuracy of a network or run."""
    return evaluate_network(_network(settings), _images(settings))


def run_profile(
    settings: ModelSettings, timings: Sequence[TimingSetting]
) -> tuple[Opened, Profile, list[dict[str, Latency]]]:
    """`cnncompress profile`: cost and, in each runtime, latency of a network or, beside its original, of a run."""
    return profile_network(_network(settings), timings)


def run_inspect(settings: ModelSettings) -> tuple[Opened, list[Inspected]]:
    """`cnncompress inspect`: a network or run and its layers."""
    return inspect_network(_network(settings))


def run_export(
    run: Path, format_: str, output: Path | None, force: bool, trust_code: bool = False, opset: int | None = None
) -> ExportReport:
    """`cnncompress export`: the network of a run as one checked file."""
    return export_of_run(run, format_, output, force, trust_code, opset)


def run_int8_export(
    run: Path,
    settings: ModelSettings,
    asked: Int8Asked,
    tell: Callable[[Int8Measured], None],
) -> ExportReport:
    """`cnncompress export --int8`: as `run_export` in 8-bit integers; `tell` hears first what that does."""
    return int8_of_run(run, NetworkAsked(trust_code=settings.trust_code), _images(settings), asked, tell)


def _network(settings: ModelSettings) -> NetworkAsked:
    return NetworkAsked(
        settings.model,
        settings.weights,
        settings.num_classes,
        settings.model_arg,
        settings.input_size,
        settings.mean,
        settings.std,
        settings.seed,
        settings.trust_code,
    )


def _images(settings: ModelSettings) -> ImagesAsked:
    return ImagesAsked(settings.data, settings.batch_size, settings.workers, settings.device)


__all__ = [
    "Compressed",
    "Decomposed",
    "Explored",
    "Int8Asked",
    "Int8Measured",
    "Latency",
    "LayerTime",
    "Profile",
    "TimingSetting",
    "Tuned",
    "compress",
    "export",
    "finetune",
    "job_of",
    "layer_times",
    "measured_table",
    "report",
    "run_decompose",
    "run_evaluate",
    "run_explore",
    "run_export",
    "run_finetune",
    "run_inspect",
    "run_int8_export",
    "run_profile",
    "run_report",
]
