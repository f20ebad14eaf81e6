"""The plan that a job asks for: from a budget, from a file, or by rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass, replace

from cnncompress.chains.plan import Budget, Plan
from cnncompress.errors import UnreachableError
from cnncompress.latency.busy import wait_for_quiet
from cnncompress.latency.network import latency
from cnncompress.metrics import get_metric
from cnncompress.network.device import resolve_device
from cnncompress.pipeline.asked import Aim
from cnncompress.pipeline.calibration import Calibration, calibrate, calibration_set
from cnncompress.pipeline.explored import key_of
from cnncompress.pipeline.fit import answers_of
from cnncompress.pipeline.guard import Guard, Limited
from cnncompress.pipeline.known_plans import KnownPlans
from cnncompress.pipeline.notes import Note, notes
from cnncompress.pipeline.timing import TimedFormats, check_format, latency_model, originals_in
from cnncompress.pipeline.work import Work
from cnncompress.planning import (
    Guide,
    LatencyModel,
    Planner,
    in_need_of_statistics,
    make_candidates,
    plan_by_rank,
    read_plan,
    selecting,
    with_reasons,
)
from cnncompress.terminal.console import LOG, Steps
from cnncompress.terminal.words import counted

SECONDS = 90.0  # for measuring the chains of a budget of latency
WORTH_SHARE = 0.98  # of the MACs: a budget that nobody asked for is not raised above this


@dataclass(frozen=True)
class Planned:
    """A plan, the aim that it follows, the calibration that it is from, None where it needed none, and what is said."""

    plan: Plan
    aim: Aim
    calibration: Calibration | None = None
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Planning:
    """All that plans within budgets are made from; they are for networks in `memory_format`, "" for their own."""

    planner: Planner | Guard | Limited
    calibration: Calibration
    memory_format: str

    def notes(self, plan: Plan) -> tuple[Note, ...]:
        """What is to be said of how a plan was made."""
        return self.planner.notes(plan) if isinstance(self.planner, Guard) else ()


def calibrated(work: Work, layers: Collection[str], steps: Steps, unseen: bool = False) -> Calibration:
    """The statistics of some layers and the images to correct on, as far as the job needs them.

    `unseen` is that of `calibration_set`.
    """
    asked, subject = work.job.fit, work.subject
    if not asked.calibrated:
        return Calibration()
    chosen = calibration_set(work.data, asked, subject.calls, unseen)
    told = steps("calibrate", f"collect the statistics of {counted(len(layers), 'layer')}")
    with told if asked.guided else nullcontext():
        return calibrate(subject, chosen, asked, layers, work.job.images, work.caches)


def calibrated_for_all(work: Work, steps: Steps) -> Calibration:
    """As `calibrated`, for every layer that may change: what a budget chooses from.

    Where channels are selected from few images, answers are compared on images of their own: what a cut costs does not
    show on those that chose it.
    """
    free = selecting(work.choices, work.subject, work.job.fit.metric)
    return calibrated(work, in_need_of_statistics(work.choices, work.subject), steps, bool(free))


def prepare_planning(work: Work, calibration: Calibration, steps: Steps) -> Planning:
    """Make candidates for every layer that may change, and time them where a budget is of latency."""
    job, subject, setting = work.job, work.subject, work.job.timings[0]
    with steps("candidates", f"try methods and ranks on {counted(len(work.choices), 'layer')}"):
        if job.fit.corrected:
            calibration = replace(calibration, answers=answers_of(subject, calibration))
        guide = Guide(job.fit.metric, calibration.statistics, calibration.answers)
        multiple = job.layers.multiple or (8 if resolve_device(job.images.device).type == "cuda" else None)
        candidates = make_candidates(subject, work.choices, guide, multiple=multiple)
    if work.table is not None:
        model = LatencyModel(work.table.table, work.table.original_ms, work.table.reference_ms)
        planner = Planner(replace(candidates, times=model))
        memory_format = job.memory_format or work.table.table.setting.memory_format
        guarded = Limited(planner, work.table.words) if job.aim.guarded else planner
        return Planning(guarded, calibration, memory_format)
    if job.aim.guarded:
        originals = originals_in(subject, setting, job.memory_format)
        return Planning(Guard(candidates, originals, setting, job.memory_format, steps), calibration, job.memory_format)
    if not job.aim.by_latency:
        return Planning(Planner(candidates), calibration, job.memory_format)
    with steps("latency", "time the network, layers and chains"):
        wait_for_quiet([setting])
        networks = originals_in(subject, setting, job.memory_format)
        timed = TimedFormats(networks, latency(networks, subject.example, setting))
        times = latency_model(candidates, timed, setting, job.memory_format, SECONDS)
    kept_in = job.memory_format or timed.reference
    return Planning(Planner(replace(candidates, times=times)), calibration, kept_in)


def plan_within(work: Work, planning: Planning, budget: Budget, steps: Steps) -> Plan:
    """The plan within a budget, with the reasons of the layers that no plan may change."""
    with steps("plan", f"plan within {budget}"):
        return _complete(work, planning.planner.plan(budget), planning.memory_format)


def make_plan(work: Work, steps: Steps) -> Planned:
    """The plan that the job asks for."""
    job, subject = work.job, work.subject
    if job.aim.budget is not None:
        if (known := explored_plan(work, job.aim.budget)) is not None:
            told = f"the plan is that in {work.explored}: no candidates were tried"
            LOG.info("%s", told)
            return Planned(known, job.aim, calibrated_for_all(work, steps), notes("plan", told))
        planning = prepare_planning(work, calibrated_for_all(work, steps), steps)
        aim, plan = within_reach(lambda budget: plan_within(work, planning, budget, steps), job.aim, job.aim.budget)
        return Planned(plan, aim, planning.calibration, planning.notes(plan))
    with steps("plan"):
        if job.aim.plan is not None:
            metric = None if work.data is None else job.fit.metric
            plan = read_plan(job.aim.plan, subject.calls, work.reasons, job.fit.corrected, metric)
        else:
            centred = get_metric(job.fit.metric).centred or job.fit.corrected
            plan = plan_by_rank(work.choices, subject, job.fit.metric, False, centred)
    return Planned(_complete(work, plan, job.memory_format), job.aim)


def explored_plan(work: Work, budget: Budget) -> Plan | None:
    """The plan within a budget as an exploration found it; None where it did not, and where a time has a say."""
    aim = work.job.aim
    if aim.by_latency or aim.guarded:
        return None
    known = KnownPlans.read(work.explored, key_of(work)).get(budget, work)
    return None if known is None else _complete(work, known, work.job.memory_format)


def _complete(work: Work, plan: Plan, memory_format: str) -> Plan:
    """The plan in its memory format, which the network is checked to run in, with all reasons."""
    plan.memory_format = plan.memory_format or memory_format
    check_format(work.opened.model, work.subject.example, plan.memory_format)
    return with_reasons(plan, work.reasons, work.subject.calls)


def within_reach(plan: Callable[[Budget], Plan], aim: Aim, budget: Budget) -> tuple[Aim, Plan]:
    """The plan within a budget, and the aim that it follows.

    Where no plan meets a budget that nobody asked for, it is halfway between the network itself and the least that can
    be had, unless that is next to nothing.
    """
    try:
        return aim, plan(budget)
    except UnreachableError as error:
        least = error.shares.get("macs", 1.0)
        if not aim.assumed or least > WORTH_SHARE:
            raise
        budget = Budget(macs=math.ceil(500 * (1 + least)) / 1000)
    return replace(aim, budget=budget), plan(budget)
