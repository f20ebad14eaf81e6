"""The one clock: prepared calls that run in turns, so that a slow moment of the machine hits all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

ENOUGH = 3  # undisturbed times that are as good as all

Call = Callable[[], object]


@dataclass(frozen=True)
class Prepared:
    """What is timed, and what runs just before and after it without being timed."""

    call: Call
    before: Call | None = None
    after: Call | None = None


@dataclass(frozen=True)
class Rounds:
    """How often calls run: after `warmup` rounds at least `least`, and as many as `seconds` for each call hold.

    With `undisturbed` there are more, up to `most`, until the system has left each call alone `ENOUGH` times.
    """

    warmup: int = 3
    least: int = 20
    seconds: float = 1.0
    undisturbed: bool = False
    most: float = math.inf


@dataclass
class Samples:
    """Milliseconds of one call by round, and in which rounds nothing else took the processor."""

    milliseconds: list[float] = field(default_factory=list)
    alone: list[bool] = field(default_factory=list)

    @property
    def undisturbed(self) -> list[float]:
        """Those of the rounds without disturbance, where there are enough of them; else none."""
        times = [ms for ms, alone in zip(self.milliseconds, self.alone, strict=True) if alone]
        return times if len(times) >= ENOUGH else []


def in_turns(
    prepared: Sequence[Prepared],
    stopwatch: Callable[[Call], float],
    rounds: Rounds,
    before_round: Call | None = None,
) -> list[Samples]:
    """The times of several calls, which take turns at being the first of a round; `stopwatch` times one of them."""
    for one in list(prepared) * rounds.warmup:
        one.call()
    samples = [Samples() for _ in prepared]
    start, done = time.perf_counter(), 0
    while not _is_over(rounds, done, (time.perf_counter() - start) / max(1, len(prepared)), samples):
        if before_round is not None:
            before_round()
        for turn in range(len(prepared)):
            k = (done + turn) % len(prepared)
            _sample(prepared[k], stopwatch, samples[k])
        done += 1
    return samples


def _sample(prepared: Prepared, stopwatch: Callable[[Call], float], samples: Samples) -> None:
    if prepared.before is not None:
        prepared.before()
    switches = preemptions()
    samples.milliseconds.append(stopwatch(prepared.call))
    samples.alone.append(preemptions() == switches)
    if prepared.after is not None:
        prepared.after()


def _is_over(rounds: Rounds, done: int, seconds: float, samples: Sequence[Samples]) -> bool:
    if done >= rounds.most:
        return True
    if done < rounds.least or seconds < rounds.seconds:
        return False
    return not rounds.undisturbed or all(one.undisturbed for one in samples)


def preemptions() -> int:
    """How often the system has taken the processor away from this process; always 0 where it does not tell."""
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def percentiles(milliseconds: Sequence[float]) -> tuple[float, float, float]:
    """The median, the tenth and the ninetieth percentile."""
    median, p10, p90 = np.percentile(milliseconds, [50, 10, 90]).tolist()
    return median, p10, p90
