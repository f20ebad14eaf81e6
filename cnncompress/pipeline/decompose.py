"""The whole job of `cnncompress decompose`, phase by phase."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cnncompress.chains.plan import Plan
from cnncompress.errors import CompressError
from cnncompress.files.tensorfile import digest_of
from cnncompress.models import DEFAULT, NONE
from cnncompress.names.models import is_path
from cnncompress.network.checking import check_finished
from cnncompress.network.compressed import Compressed, compressed
from cnncompress.network.evaluate import Evaluation
from cnncompress.network.narrow import narrowed_cost
from cnncompress.network.provenance import Provenance
from cnncompress.pipeline.asked import Job, NetworkAsked
from cnncompress.pipeline.calibration import Calibration, cache_file
from cnncompress.pipeline.classes import class_changes
from cnncompress.pipeline.fit import compared, fit
from cnncompress.pipeline.images import held_out
from cnncompress.pipeline.latencies import where_time_goes
from cnncompress.pipeline.notes import Note, collect, notes
from cnncompress.pipeline.opened import Opened
from cnncompress.pipeline.original import original_of, original_row
from cnncompress.pipeline.plan import (
    Planned,
    calibrated,
    calibrated_for_all,
    make_plan,
    plan_within,
    prepare_planning,
)
from cnncompress.pipeline.rows import planned_row
from cnncompress.pipeline.search import search
from cnncompress.pipeline.timing import TimedResult, time_result
from cnncompress.pipeline.words import (
    as_trained,
    described,
    expected_steps,
    hint,
    narrow_outputs,
    nothing_to_do,
    predicted_rise,
    spent,
)
from cnncompress.pipeline.work import Before, Work, measure, measure_original, prepare, row_of
from cnncompress.planning import in_need_of_statistics
from cnncompress.reporting import Report, Row, layer_rows
from cnncompress.reporting.layer_times import LayerTimes
from cnncompress.runs import save_run
from cnncompress.terminal.console import Steps


@dataclass(frozen=True)
class Decomposed:
    """What `decompose_network` did: plan, network, report, where it was saved (None for a dry run), seconds by phase.

    `hint` says what could be asked for instead.
    """

    plan: Plan
    report: Report
    out: Path | None
    phases: Steps
    hint: str = ""


@dataclass(frozen=True)
class Made:
    """A compressed network, its last plan, the accuracy of it and its original, and what is to be said of it."""

    plan: Plan
    compressed: Compressed
    before: Before
    result: Evaluation | None
    calibration: Calibration
    notes: tuple[Note, ...]


def decompose_network(job: Job, command: Sequence[str]) -> Decomposed:
    """Load, plan, factorize, correct, measure and save; nobody else may write at the job's place meanwhile."""
    with ExitStack() as held:
        steps = Steps(expected_steps(job))
        work = prepare(job, held, steps)
        if job.aim.max_drop is not None:
            return _finish(work, _searched(work, job.aim.max_drop, steps), command, steps)
        planned = make_plan(work, steps)
        work = replace(work, job=replace(job, aim=planned.aim))
        if job.place.dry_run:
            return _dry_run(work, planned, steps)
        if not planned.plan.changes:
            raise CompressError(nothing_to_do(work.opened.name, planned.plan))
        return _finish(work, _made(work, planned, steps), command, steps)


def _made(work: Work, planned: Planned, steps: Steps) -> Made:
    """The network of a plan."""
    job, plan, subject = work.job, planned.plan, work.subject
    before = measure_original(work, steps)
    calibration = planned.calibration or calibrated(work, in_need_of_statistics(plan.changes, subject), steps)
    fitted = fit(subject, plan, calibration, job.fit, list(work.choices), steps)
    result, said = measure(work, fitted.network, steps), planned.notes + fitted.notes
    if work.data is not None and not (work.data.labelled and work.outputs is not None):
        with steps("evaluate", "compare the answers with the original's"):
            said += compared(subject, fitted.network, work.data, job.images)
    return Made(plan, fitted.made, before, result, calibration, said)


def _searched(work: Work, max_drop: float, steps: Steps) -> Made:
    """The network of the fewest MACs that loses no more than so many points of top-1."""
    job, before = work.job, measure_original(work, steps)
    with steps("search", f"look for the fewest MACs that lose at most {max_drop:g} points"):
        if before.row.top1 is None or work.data is None or before.row.data != work.data.fingerprint:
            raise CompressError("no accuracy to compare with: that of the original on these images is not known")
        planning = prepare_planning(work, calibrated_for_all(work, steps), steps)
        adjust = list(work.choices)
        best = search(
            lambda budget: plan_within(work, planning, budget, steps),
            lambda plan: fit(work.subject, plan, planning.calibration, job.fit, adjust, steps),
            lambda network: measure(work, network, steps),
            max_drop,
            before.row.top1,
            before.result,
        )
    said = planning.notes(best.plan) + best.notes
    return Made(best.plan, best.made, before, best.result, planning.calibration, said)


def _finish(work: Work, made: Made, command: Sequence[str], steps: Steps) -> Decomposed:
    """Time and check a network, and save it with its report."""
    job, opened, example, small = work.job, work.opened, work.subject.example, made.compressed
    with steps("profile"):
        row = row_of(work, small.network, made.result, made.before.result)
    before, said = made.before.row, made.notes
    if work.table is not None:
        said += notes("latency", f"planned with the times of {work.table.network} in {work.table.words}")
    by_layer: list[LayerTimes] = []
    if job.timed or (job.aim.searching and work.table is None):
        own = original_of(opened.run)
        original = opened.model if own is None else own
        with steps("latency", "time the networks"):
            timed = time_result(original, small.network, made.plan, example, job.aim, job.timings)
            small, said = in_format(small, timed), said + timed.notes
            made.plan.memory_format = timed.memory_format
            before, row = before.timed([then for then, _ in timed.times]), row.timed([now for _, now in timed.times])
            timings = zip(job.timings, timed.times, strict=False)
            by_layer = where_time_goes(row.name, (original, small), example, timings)
    check_finished(opened.model, small.network, example)
    origin = small.provenance
    told = collect(
        _told_of_plan(work, made.plan, row), work.notes, made.calibration.notes, said, _told_of(work, made, origin)
    )
    changes = class_changes(row.name, made.before.result, made.result, work.data)
    rows = layer_rows(origin.plan, origin.errors)
    report = Report([before, row], rows, origin.plan.kept, told, changes=changes, layer_times=by_layer)
    info = run_info(work, command)
    with steps("save", f"save in {work.out}"):
        sides = cache_file(job.place.keep_statistics, made.calibration)
        metrics = report.to_json()
        report.notes += save_run(work.out, small, metrics=metrics, info=info, force=job.place.force, sides=sides)
    return Decomposed(made.plan, report, work.out, steps, hint(job))


def in_format(small: Compressed, timed: TimedResult) -> Compressed:
    """The network in the memory format that it was found to be fastest in."""
    known = small.provenance
    plan = replace(known.plan, memory_format=timed.memory_format or known.plan.memory_format)
    return compressed(timed.network, replace(known, plan=plan))


def _dry_run(work: Work, planned: Planned, steps: Steps) -> Decomposed:
    """The report of a plan that is not carried out."""
    opened, cost, job, plan = work.opened, work.subject.cost, work.job, planned.plan
    now = original_row(opened, cost, None, lambda network: None)
    narrow = narrowed_cost(work.subject, plan)
    row: Row = planned_row(described(opened, job), plan, narrow, work.subject.example.element_size())
    calibration = planned.calibration or Calibration()
    of_network = [note for note in work.notes if note.source == "network"]
    told = collect(_told_of_plan(work, plan, row), planned.notes, of_network, calibration.notes)
    report = Report([now, row], layer_rows(plan, {}), plan.kept, told)
    return Decomposed(plan, report, None, steps, hint(job))


def _told_of_plan(work: Work, plan: Plan, row: Row) -> tuple[Note, ...]:
    told = (
        *spent(work.job.aim, plan, work.job.fit, work.opened.run is not None),
        *as_trained(plan, work.subject.calls, row),
    )
    return notes("plan", *told)


def _told_of(work: Work, made: Made, origin: Provenance) -> list[Note]:
    """What is to be said of the finished network."""
    rises = {} if made.plan.rises else origin.rises
    said = [*notes("prediction", *predicted_rise(rises, work.job.aim.plan is not None))]
    earlier, metric = work.opened.provenance.plan, made.plan.metric
    if earlier.layers and earlier.metric != metric:
        other = f"relative errors are in {metric}, those of layers replaced in the earlier run in {earlier.metric}"
        said += notes("earlier run", other)
    return [*said, *notes("outputs", *narrow_outputs(made.plan, work.outputs))]


def run_info(work: Work, command: Sequence[str]) -> dict[str, Any]:
    """What `run.json` holds beside the versions and the source."""
    opened, job, data = work.opened, work.job, work.data
    previous = opened.run.info if opened.run else {}
    return {
        "name": opened.name,
        "model": previous.get("model") or origin_of(job.network, opened),
        "command": list(command),
        "seed": job.seed,
        "data": {"spec": job.images.spec, "fingerprint": data.fingerprint} if data else None,
        "held_out": held_out(opened, data),
    }


def origin_of(asked: NetworkAsked, opened: Opened) -> dict[str, Any]:
    """What it takes to have the original again, and to know that it is the same."""
    file = asked.weights not in (DEFAULT, NONE) and is_path(asked.weights)
    weights = str(Path(asked.weights).resolve()) if file else asked.weights
    return {"name": asked.name, "weights": weights, "seed": asked.seed, "sha256": digest_of(opened.model.state_dict())}
