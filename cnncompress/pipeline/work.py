"""A job in hand: the network opened, looked at and checked, its images at hand, its place reserved."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from cnncompress.data import Data
from cnncompress.files.place import default_exploration, default_place
from cnncompress.latency.table_file import Measured, read_table
from cnncompress.metrics import get_metric
from cnncompress.network.checking import check_weights, remarks_on
from cnncompress.network.device import resolve_device
from cnncompress.network.evaluate import Evaluation, paired_error
from cnncompress.network.memory_format import to_memory_format
from cnncompress.network.profile import profile
from cnncompress.network.subject import Subject, look_at
from cnncompress.pipeline.asked import Job
from cnncompress.pipeline.calibration import STATISTICS, apart, with_gradients
from cnncompress.pipeline.images import evaluate_on, open_data
from cnncompress.pipeline.notes import Note, notes
from cnncompress.pipeline.opened import Opened, count_outputs, need_layers, open_network
from cnncompress.pipeline.original import original_row
from cnncompress.pipeline.rows import make_row
from cnncompress.pipeline.timing import check_format, check_timings
from cnncompress.pipeline.words import described, labels_for
from cnncompress.planning import Choice, choices_of, reasons_of
from cnncompress.reporting import Row
from cnncompress.runs.lock import reserved
from cnncompress.runs.rebuild import check_packed
from cnncompress.terminal.console import Steps


@dataclass(frozen=True)
class Work:
    """What a job is done on: `choices` are asked of the layers that may change, `reasons` keep the others.

    `outputs` is the number of classes that the network tells apart, None where it does something else; `out` the place
    of the run. A budget's times are those of `table`, None where they are to be measured.
    """

    job: Job
    opened: Opened
    subject: Subject
    data: Data | None
    choices: Mapping[str, Choice]
    reasons: Mapping[str, str]
    outputs: int | None
    out: Path
    notes: tuple[Note, ...]
    table: Measured | None = None

    @property
    def caches(self) -> tuple[Path, ...]:
        """The files whose statistics are taken where they fit."""
        return self.out / STATISTICS, self.explored / STATISTICS

    @property
    def explored(self) -> Path:
        """The folder of the exploration whose statistics and plans are taken where they fit."""
        return self.job.place.statistics or default_exploration(self.opened.name)


def prepare(job: Job, held: ExitStack, steps: Steps) -> Work:
    """Open and check all that a job needs; nobody else may write at its place while `held` is open."""
    resolve_device(job.images.device)
    check_timings(job.timings)
    table = None if job.table is None else read_table(job.table)
    get_metric(job.fit.metric)
    if job.place.out is not None and not job.place.dry_run:
        held.enter_context(reserved(job.place.out, job.place.force))
    with steps("build", f"load {job.network.name}"):
        opened = open_network(job.network)
        need_layers(opened, "decompose")
        out = job.place.out or default_place(opened.name)
        if not job.place.dry_run:
            held.enter_context(reserved(out, job.place.force))
        data = apart(open_data(job.images.spec, opened, labels_for(job)), job.fit)
        check_weights(opened.model)
        check_packed(opened.model, opened.provenance)
        check_format(opened.model, opened.example(), job.memory_format)
        to_memory_format(opened.model, job.memory_format)  # so that all the work is done in it
        subject = look_at(opened.model, opened.example(), opened.provenance)
        default, special = job.layers.rules(job.seed)
        choices, reasons = choices_of(subject, default, special, job.layers.layers, job.layers.skip)
        fit, told = with_gradients(job.fit, opened.model, opened.example())
        said = notes("network", *remarks_on(opened.model, opened.example(2))) + told
        if opened.assumed:
            said += notes("input", f"assumed of {opened.taken_for}")
        outputs = count_outputs(opened)
    return Work(
        replace(job, fit=fit),
        opened,
        subject,
        data,
        choices,
        reasons | reasons_of(subject.cost),
        outputs,
        out,
        said,
        table,
    )


@dataclass(frozen=True)
class Before:
    """The row of the original, and its accuracy where it was measured for it."""

    row: Row
    result: Evaluation | None = None


def measure_original(work: Work, steps: Steps) -> Before:
    """The row of the original; its accuracy is measured where it is not known yet."""
    results: list[Evaluation | None] = []

    def measured(network: nn.Module) -> Evaluation | None:
        results.append(measure(work, network, steps))
        return results[-1]

    row = original_row(work.opened, work.subject.cost, work.data, measured)
    return Before(row, next(iter(results), None))


def measure(work: Work, network: nn.Module, steps: Steps) -> Evaluation | None:
    """Accuracy on the evaluation images; None without data and for a network that tells no classes apart."""
    if work.data is None or work.outputs is None:
        return None
    with steps("evaluate", f"evaluate the {'original' if network is work.opened.model else 'compressed'} network"):
        return evaluate_on(network, work.data, work.job.images)


def row_of(work: Work, network: nn.Module, result: Evaluation | None, before: Evaluation | None) -> Row:
    """The row of a compressed network with its accuracy, and the standard error of what it changed."""
    cost = profile(network, work.subject.example)
    row = make_row(described(work.opened, work.job), "decomposed", cost, result, work.data)
    return replace(row, top1_error=paired_error(before, result))
