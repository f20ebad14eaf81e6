"""A budget of MACs or parameters makes no network slower: its plan is timed, and time is a limit where it must be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from cnncompress.chains.plan import Budget, Plan
from cnncompress.errors import CompressError, UnreachableError
from cnncompress.latency.busy import wait_for_quiet
from cnncompress.latency.network import latency
from cnncompress.latency.setting import TimingSetting
from cnncompress.network.memory_format import to_memory_format
from cnncompress.pipeline.formats import fastest, in_formats
from cnncompress.pipeline.notes import Note, notes
from cnncompress.pipeline.timing import TimedFormats, latencies_of, latency_model
from cnncompress.planning import Candidates, Planner, with_random_chains
from cnncompress.planning.whole import ROUNDS
from cnncompress.terminal.console import Steps

SECONDS = 12.0  # for measuring chains
TIME_SHARES = (0.98, 1.0)  # shares of the original's time that are planned for: measurements differ by some percent
CONFIRMATIONS = 3  # plans that are tried for a share to name
WHOLE_SHARE = 0.995  # share of a cost from which on hardly anything is saved


@dataclass(eq=False)
class Guard:
    """Plans within budgets that leave time out, for networks that take no longer than the original.

    `originals` are the original by the memory formats that it may be in. The plan is for networks in `memory_format`,
    "" for the fastest.
    """

    candidates: Candidates
    originals: Mapping[str, nn.Module]
    setting: TimingSetting
    memory_format: str
    steps: Steps
    failure: str = ""
    busy: str | None = None
    _timed: dict[str, Planner] = field(default_factory=dict)
    _told: list[tuple[Plan, tuple[Note, ...]]] = field(default_factory=list)

    def plan(self, budget: Budget) -> Plan:
        """The most accurate plan; where it would make the network slower, the most accurate one that does not.

        A network that cannot be timed has the plan within the budget alone. UnreachableError where no plan meets the
        budget, and where none does within the original's time.
        """
        free = Planner(self.candidates).plan(budget)
        if not free.layers or self.failure:
            return free
        try:
            with self.steps("guard", "time the plan"):
                self.busy = wait_for_quiet([self.setting]) if self.busy is None else self.busy
                timed, share, layout = self._share(free)
            if share <= 1:
                free.achieved["latency"] = share
                return free
            plan = self._within_time(budget, timed, layout)
        except UnreachableError as error:
            raise refusal(budget, error, self.setting.label) from None
        except CompressError as error:
            self.failure = f"planned without regard to time, which was not measured: {error}"
            return free
        plan.memory_format = layout
        others = f"the most accurate plan for {budget} alone would take {share:.2f} of the original's time"
        self._told.append((plan, notes("plan", f"{others}; this plan keeps to that time (--allow-slower does not)")))
        return plan

    def notes(self, plan: Plan) -> tuple[Note, ...]:
        """What is to be said of a plan."""
        said = next((told for known, told in self._told if known is plan), ())
        return said + notes("latency", *filter(None, (self.busy, self.failure)))

    def _share(self, plan: Plan) -> tuple[TimedFormats, float, str]:
        """The originals timed, the share of the fastest one's time that a plan takes, and the format it takes it in."""
        subject, asked = self.candidates.subject, self.memory_format
        small = with_random_chains(subject.network, plan)
        smalls = {asked: to_memory_format(small, asked)} if asked else in_formats(small, subject.example, self.setting)
        named = {"original": self.originals, "planned": smalls}
        before, after = latencies_of(
            named, lambda together: latency(together, subject.example, self.setting, ROUNDS, quickly=True)
        )
        best = min(after, key=lambda layout: after[layout].p10)
        return TimedFormats(self.originals, before), after[best].p10 / before[fastest(before)].p10, best

    def _within_time(self, budget: Budget, timed: TimedFormats, layout: str) -> Plan:
        """The plan with time as a limit, in a memory format."""
        with self.steps("guard", "time layers and chains"):
            if layout not in self._timed:
                times = latency_model(self.candidates, timed, self.setting, layout, SECONDS)
                self._timed[layout] = Planner(replace(self.candidates, times=times))
            planner = self._timed[layout]
            for limit in TIME_SHARES:
                try:
                    return planner.plan(replace(budget, latency=limit))
                except UnreachableError as error:
                    refused = error
            raise self._confirmed(planner, budget, refused)

    def _confirmed(self, planner: Planner, budget: Budget, error: UnreachableError) -> UnreachableError:
        """The error with the share that a plan is known for within the original's time, as the whole network tells."""
        for _ in range(CONFIRMATIONS):
            others = _without_time(error.beside)
            if len(others) != 1 or min(others.values()) >= WHOLE_SHARE:
                break
            try:
                planner.plan(replace(budget, latency=TIME_SHARES[-1], **others))
                break
            except UnreachableError as again:
                error = UnreachableError(str(error), error.shares, {**error.beside, **_without_time(again.beside)})
        return error


@dataclass(frozen=True)
class Limited:
    """As `Guard`, by a planner that knows all times from a table: nothing is measured."""

    planner: Planner
    where: str

    def plan(self, budget: Budget) -> Plan:
        """The most accurate plan that is no slower than the original; errors as `Guard.plan`."""
        self.planner.plan(budget)  # without regard to time, which has errors of its own
        try:
            return self.planner.plan(replace(budget, latency=1.0))
        except UnreachableError as error:
            raise refusal(budget, error, self.where) from None


def _without_time(shares: Mapping[str, float]) -> dict[str, float]:
    return {name: share for name, share in shares.items() if name != "latency"}


def refusal(budget: Budget, error: UnreachableError, where: str) -> UnreachableError:
    """That no plan meets a budget within the original's time, and what there is."""
    least = error.beside
    parts = [f"within it the least time is {least['latency']:.3f} of the original's"] if "latency" in least else []
    others = _without_time(least)
    if others and min(others.values()) < WHOLE_SHARE:
        reach = ", ".join(f"{name}={share:.3f}" for name, share in others.items())
        parts.append(f"in the original's time these layers and methods go down to {reach}")
    elif others:
        parts.append("no chain here is faster than its layer")
    told = f"every plan for {budget} makes the network slower in {where}: {', and '.join(parts)}"
    return UnreachableError(f"{told}; --allow-slower (allow_slower=True) takes more time", others)
