"""What the commands do, of their settings: these become small values here, and nothing below knows settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from cnncompress.config import DecomposeSettings, ExploreSettings, ModelSettings, TuneSettings
from cnncompress.errors import UsageError
from cnncompress.finetuning import FinetuneSettings
from cnncompress.latency.setting import TimingSetting
from cnncompress.latency.timed import Latency
from cnncompress.names.metrics import DEFAULT
from cnncompress.network.costs import Profile
from cnncompress.network.evaluate import Evaluation
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
from cnncompress.pipeline.measure import evaluate_network, profile_network, report_on
from cnncompress.pipeline.opened import Opened
from cnncompress.pipeline.page import report_with_pictures
from cnncompress.planning import Choice
from cnncompress.programs.export import ExportReport
from cnncompress.programs.measured import Int8Measured
from cnncompress.reporting import Report
from cnncompress.reporting.pictures import Pictures


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
        settings.init,
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
    asked = TrainingAsked(settings.out, settings.force, settings.resume, settings.augment)
    return train_run(Path(settings.model), _network(settings), _images(settings), training, asked, command)


def run_report(runs: Sequence[Path], settings: ModelSettings, timings: Sequence[TimingSetting]) -> Report:
    """`cnncompress report`: the tables of runs, measured again on data, and timed as each of `timings` says."""
    return report_on(runs, _images(settings), timings, settings.trust_code)


def run_page(
    runs: Sequence[Path], settings: ModelSettings, timings: Sequence[TimingSetting], examples: int = 0
) -> tuple[Report, dict[str, Pictures]]:
    """What the page of `cnncompress report` shows: as `run_report`, and pictures of the weights of each run.

    It has so many `examples` of images whose answer changed.
    """
    return report_with_pictures(runs, _images(settings), timings, settings.trust_code, examples)


def run_evaluate(settings: ModelSettings) -> tuple[str, Evaluation]:
    """`cnncompress evaluate`: name and accuracy of a network or run."""
    return evaluate_network(_network(settings), _images(settings))


def run_profile(
    settings: ModelSettings, timings: Sequence[TimingSetting]
) -> tuple[Opened, Profile, list[dict[str, Latency]]]:
    """`cnncompress profile`: cost and, in each runtime, latency of a network or, beside its original, of a run."""
    return profile_network(_network(settings), timings)


def run_inspect(settings: ModelSettings, timing: TimingSetting | None = None) -> tuple[Opened, list[Inspected]]:
    """`cnncompress inspect`: a network or run and its layers, timed as `timing` says."""
    return inspect_network(_network(settings), timing)


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
