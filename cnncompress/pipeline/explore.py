"""The whole job of `cnncompress explore`: one calibration, one set of candidates, many plans, a few networks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cnncompress.chains.plan import Budget, Plan
from cnncompress.errors import UnreachableError, UsageError
from cnncompress.files.place import default_exploration, resolve
from cnncompress.network.divergence import IMAGES_PER_CHECK, Answers, to_check
from cnncompress.network.evaluate import Evaluation
from cnncompress.network.inputs import input_dtype, read_batch
from cnncompress.pipeline.asked import GridAsked, Job
from cnncompress.pipeline.calibration import STATISTICS, evenly
from cnncompress.pipeline.explored import Found, check_place, key_of, read_found, write_found
from cnncompress.pipeline.fit import fit
from cnncompress.pipeline.images import batches_for
from cnncompress.pipeline.known_plans import KnownPlans
from cnncompress.pipeline.notes import collect, notes
from cnncompress.pipeline.original import original_of
from cnncompress.pipeline.plan import Planning, calibrated_for_all, plan_within, prepare_planning
from cnncompress.pipeline.timing import time_result
from cnncompress.pipeline.work import Work, measure, measure_original, prepare, row_of
from cnncompress.reporting import Row
from cnncompress.reporting.curve import Curve, Measured, Point, curves_of
from cnncompress.reporting.exploration import Exploration
from cnncompress.runs.lock import writing
from cnncompress.statistics import save_statistics
from cnncompress.terminal.console import LOG, Steps
from cnncompress.terminal.words import counted

KEPT = "interrupted; what was measured is kept in {place}, and the same command goes on with the rest"


@dataclass(frozen=True)
class Explored:
    """What `explore_network` found, where it is kept, and the seconds of each phase."""

    exploration: Exploration
    out: Path
    phases: Steps


def explore_network(job: Job, asked: GridAsked, command: Sequence[str]) -> Explored:
    """Plan within every budget, and make and measure a few of the networks; what was found before is taken over.

    `command` is that of `decompose`, without a budget.
    """
    if job.images.spec is None:
        raise UsageError("nothing to explore on; give --data FOLDER, cifar10:ROOT or digits")
    with ExitStack() as held:
        steps = Steps(["build", "calibrate", "candidates", "plan", *["measure"] * asked.measure])
        work = prepare(job, held, steps)
        place = asked.out or default_exploration(work.opened.name)
        check_place(place)
        held.enter_context(writing(resolve(place)))
        key = key_of(work)
        found = read_found(place, key, work.opened.name, asked.force)
        bench = _Bench(work, KnownPlans.read(place, key), steps)
        try:
            found = _planned(bench, asked.budgets, found)
            found = _measured(bench, asked, found)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(KEPT.format(place=place)) from None
        return Explored(_exploration(work, asked, found, command), place, steps)


class _Bench:
    """The work with what plans and networks are made from, which is prepared when it is first needed."""

    def __init__(self, work: Work, known: KnownPlans, steps: Steps) -> None:
        self.work, self.known, self.steps = work, known, steps
        self.place = known.folder
        self._planning: Planning | None = None
        self._plans: dict[Budget, Plan] = {}
        self._before: tuple[Row, Evaluation | None] | None = None
        self._answers: Answers | None = None

    def planning(self) -> Planning:
        """Calibrate, which is kept on the disk at once, and make candidates."""
        if self._planning is None:
            calibration = calibrated_for_all(self.work, self.steps)
            kept = self.place / STATISTICS
            if calibration.statistics and calibration.source != kept:
                save_statistics(kept, calibration.statistics, calibration.key)
            self._planning = prepare_planning(self.work, calibration, self.steps)
        return self._planning

    def plan(self, budget: Budget) -> Plan:
        """The plan within a budget, made once; a budget of latency alone decides the memory format."""
        if budget not in self._plans:
            planning = self.planning()
            if budget.latency is None:
                planning = replace(planning, memory_format=self.work.job.memory_format)
            self._plans[budget] = plan_within(self.work, planning, budget, self.steps)
            self.known.add(budget, self._plans[budget])
        return self._plans[budget]

    def before(self) -> tuple[Row, Evaluation | None]:
        """The row of the original and its accuracy, measured once."""
        if self._before is None:
            found = measure_original(self.work, self.steps)
            self._before = found.row, found.result
        return self._before

    def answers(self) -> Answers:
        """The original's answers to some of the evaluation images, which calibrated nothing."""
        if self._answers is None:
            work, data = self.work, self.work.data
            assert data is not None
            some = evenly(len(data.val), IMAGES_PER_CHECK[1])
            read = work.job.images
            loader = batches_for(work.subject.network, data.val, read, read.reading, some)
            dtype = input_dtype(work.subject.network)
            images = torch.cat([read_batch(batch, dtype, labels=False)[0] for batch in loader])
            self._answers = Answers(work.subject.network, to_check(images, work.subject.cost.total_macs))
        return self._answers


def _planned(bench: _Bench, budgets: Sequence[Budget], found: Found) -> Found:
    """With a point for every budget; those that are known stay."""
    for budget in budgets:
        if budget not in found.points:
            found.points[budget] = _point(bench, budget)
            write_found(bench.place, found)
    return found


def _point(bench: _Bench, budget: Budget) -> Point:
    (cost, share), *_ = budget.shares.items()
    try:
        plan = bench.plan(budget)
    except UnreachableError as error:
        return Point(cost, share, refused=str(error))
    return Point(cost, share, plan.achieved, sum(plan.rises.values()), len(plan.changes))


def _measured(bench: _Bench, asked: GridAsked, found: Found) -> Found:
    """With some of the networks of each cost measured; each is on the disk before the next is made."""
    for cost in dict.fromkeys(next(iter(budget.shares)) for budget in asked.budgets):
        while (point := _next(bench.work, found, asked, cost)) is not None:
            with bench.steps("measure", f"make and measure the network of {point.budget}"):
                found.points[point.budget] = replace(point, measured=_measure(bench, point))
                found.original = bench.before()[0]
            write_found(bench.place, found)
    return found


def _next(work: Work, found: Found, asked: GridAsked, cost: str) -> Point | None:
    """The next point of a cost to measure: one whose times are not those asked for, or a new one."""
    curve = _curve(found, asked, cost)
    measured = [point for point in curve.points if point.measured is not None]
    if stale := [point for point in measured if not _has_times(work, point)]:
        return stale[0]
    return curve.next_to_measure() if len(measured) < asked.measure else None


def _curve(found: Found, asked: GridAsked, cost: str) -> Curve:
    points = [found.points[budget] for budget in asked.budgets]
    return next(curve for curve in curves_of(points, found.original) if curve.cost == cost)


def _is_timed(work: Work, cost: str) -> bool:
    return work.job.timed or (cost == "latency" and work.table is None)


def _has_times(work: Work, point: Point) -> bool:
    """Whether a measured point has the times that are asked for."""
    if not _is_timed(work, point.cost) or point.measured is None:
        return True
    known = {(one.setting.label, one.setting.batch) for one in point.measured.row.latencies}
    return {(setting.label, setting.batch) for setting in work.job.timings} <= known


def _measure(bench: _Bench, point: Point) -> Measured:
    """The network of a point made, evaluated, compared with the original and, where that is asked for, timed."""
    budget, steps = point.budget, bench.steps
    work = replace(bench.work, job=replace(bench.work.job, aim=replace(bench.work.job.aim, budget=budget)))
    job, subject, plan = work.job, work.subject, bench.plan(budget)
    _, before = bench.before()
    network = fit(subject, plan, bench.planning().calibration, job.fit, list(work.choices), steps).network
    row = row_of(work, network, measure(work, network, steps), before)
    divergence = bench.answers().divergence(network)
    if _is_timed(work, point.cost):
        with steps("latency", "time the networks"):
            own = original_of(work.opened.run)
            original = work.opened.model if own is None else own
            timed = time_result(original, network, plan, subject.example, job.aim, job.timings)
        row = row.timed([replace(now, original=then.median) for then, now in timed.times])
        for note in timed.notes:
            LOG.debug("%s", note.text)
    return Measured(row, divergence)


def _exploration(work: Work, asked: GridAsked, found: Found, command: Sequence[str]) -> Exploration:
    """The budgets asked for, with what was found of them."""
    points = tuple(found.points[budget] for budget in asked.budgets)
    said = notes("plan", f"Predicted rises are nats an image, before any correction, under {work.job.fit.metric}.")
    if any(point.cost != "latency" for point in points):
        said += notes("plan", "Time limits no budget of MACs or parameters here: their commands say --allow-slower.")
    if any(point.measured for point in points) and work.data is not None:
        told = f"Divergences are from {counted(len(evenly(len(work.data.val), IMAGES_PER_CHECK[1])), 'image')}"
        said += notes("answers", f"{told} that calibrated nothing.")
    return Exploration(work.opened.name, points, found.original, tuple(command), tuple(collect(work.notes, said)))
