"""Measurements that change nothing: accuracy, cost, latency."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from cnncompress.errors import DataError, UsageError
from cnncompress.latency.busy import wait_for_quiet
from cnncompress.latency.setting import TimingSetting
from cnncompress.latency.timed import Latency
from cnncompress.network.costs import Profile
from cnncompress.network.device import resolve_device
from cnncompress.network.evaluate import Evaluation, paired_error
from cnncompress.network.profile import profile
from cnncompress.pipeline.asked import ImagesAsked, NetworkAsked
from cnncompress.pipeline.classes import class_changes
from cnncompress.pipeline.examples import changed_images
from cnncompress.pipeline.images import evaluate_on, open_data
from cnncompress.pipeline.latencies import add_latencies, measure_latency, times_beside
from cnncompress.pipeline.opened import Opened, open_network, open_run
from cnncompress.pipeline.original import NOT_AT_HAND, original_network, with_accuracy
from cnncompress.pipeline.timing import check_timings
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


def profile_network(
    asked: NetworkAsked, timings: Sequence[TimingSetting]
) -> tuple[Opened, Profile, list[dict[str, Latency]]]:
    """Params, MACs and, in each runtime, latency of a network or, in turns with its original, of a run.

    See `measure_latency`.
    """
    check_timings(timings)
    steps = Steps(["load", "time"])
    steps.announce("load", f"load {asked.name}")
    opened = open_network(asked)
    cost = profile(opened.model, opened.example())
    steps.announce("time", "time the network beside its original" if opened.run else "time the network")
    _warn_if_busy(timings)
    return opened, cost, [measure_latency(opened, timing) for timing in timings]


def report_on(
    runs: Sequence[Path],
    images: ImagesAsked,
    timings: Sequence[TimingSetting],
    trust_code: bool = False,
) -> Report:
    """The tables of one or more runs; measured again on `images`, and timed as each of `timings` says."""
    if images.spec is None and not timings:
        return stored_reports(runs)
    check_measures(images, timings)
    reports = {}
    for path in runs:
        report, opened = stored_report(path), open_run(path, NetworkAsked(trust_code=trust_code))
        original = None if images.spec is None else original_network(opened)
        measure_again(report, opened, original, images, timings)
        reports[str(path)] = report
    return merge(reports)


def check_measures(images: ImagesAsked, timings: Sequence[TimingSetting]) -> None:
    """Before any work: UsageError or CompressError for what cannot be measured here."""
    resolve_device(images.device)
    check_timings(timings)


def measure_again(
    report: Report,
    opened: Opened,
    original: nn.Module | None,
    images: ImagesAsked,
    timings: Sequence[TimingSetting],
    examples: int = 0,
) -> None:
    """Put what is measured of a run and its original into its report: on `images`, and as each of `timings` says.

    So many `examples` of images whose answer changed are taken.
    """
    path = opened.weights.removeprefix("run ")
    if images.spec is not None:
        LOG.info("evaluate %s on %s", path, images.spec)
        remeasure(report, opened, original, images, examples)
    if timings:
        LOG.info("time %s beside its original", path)
        _warn_if_busy(timings)
        measured = [measure_latency(opened, timing) for timing in timings]
        add_latencies(report, measured)
        report.layer_times = times_beside(opened, report.rows[-1].name, timings, measured)


def _warn_if_busy(timings: Sequence[TimingSetting]) -> None:
    if busy := wait_for_quiet(timings):
        LOG.warning("%s", busy)


def remeasure(
    report: Report, opened: Opened, original: nn.Module | None, images: ImagesAsked, examples: int = 0
) -> None:
    """Measure the original's and the newest row on a data set; the rows between lose their accuracy."""
    data = open_data(images.spec, opened, "accuracy")
    networks = {0: original, len(report.rows) - 1: opened.model}
    if original is None:
        report.notes.append(NOT_AT_HAND)
    results = {i: evaluate_on(network, data, images) for i, network in networks.items() if network is not None}
    last = len(report.rows) - 1
    changed = report.rows[last].name, results.get(0), results.get(last), data
    report.changes = class_changes(*changed) if last else []
    report.examples = changed_images(*changed, examples) if last and examples else []
    for i, row in enumerate(report.rows):
        error = paired_error(results.get(0), results.get(i)) if i else None
        report.rows[i] = dataclasses.replace(with_accuracy(row, results.get(i), data), top1_error=error)
