"""Milliseconds in several runtimes side by side, and what they say in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cnncompress.latency.timed import Latency
from cnncompress.reporting.cells import NONE, divide, share

EAGER = "torch"
SAME_SHARE = 0.03  # share by which two times may differ and count as one
Columns = tuple[list[str], list[list[str]], str]


@dataclass(frozen=True)
class Beside:
    """What a network took in a runtime, and its original in turns with it, where there is one.

    `original` has the percentiles of the latter where they are known.
    """

    now: Latency
    before: float | None = None
    original: Latency | None = None

    @property
    def label(self) -> str:
        """The runtime and the precision."""
        return self.now.setting.label

    @property
    def alone(self) -> float:
        """Milliseconds without compression."""
        return self.now.median if self.before is None else self.before

    @property
    def least(self) -> float:
        """Milliseconds of the faster of both."""
        return min(self.alone, self.now.median)


def time_table(timings: Mapping[str, Sequence[Beside]], percentiles: bool = True) -> Columns:
    """A line for each network and runtime; speed-ups are over the original in eager PyTorch, or the first runtime."""
    compared = _compared(timings)
    unit = "ms [p10–p90]" if percentiles else "ms"
    headers = [
        "timed",
        "runtime",
        f"original {unit}",
        f"{'compressed' if compared else 'network'} {unit}",
        "share",
        "alone",
        "together" if compared else "speed-up",
    ]
    cells = []
    for name, timed in timings.items():
        base = base_of(timed)
        for one in timed:
            gains = [f"{base.alone / ms:.2f}" for ms in (one.alone, one.now.median)]
            ratio = divide(one.now.median, one.before) if one.before else None
            before = NONE if one.before is None else milliseconds(one.before, one.original if percentiles else None)
            now = milliseconds(one.now.median, one.now if percentiles else None)
            cells.append([name, one.label, before, now, NONE if ratio is None else share(ratio), *gains])
    hidden = {0} if len(timings) == 1 else set()
    hidden |= set() if compared else {2, 4, 5}
    shown = [i for i in range(len(headers)) if i not in hidden]
    aligned = "".join("llrrrrr"[i] for i in shown)
    return [headers[i] for i in shown], [[row[i] for i in shown] for row in cells], aligned


def legend(timings: Mapping[str, Sequence[Beside]]) -> str:
    """What the shares and speed-ups of the table are of."""
    base = words(base_of(next(iter(timings.values()))))
    if not _compared(timings):
        return f"speed-up: how many times as fast as in {base}."
    return (
        "share: of the original's time in the same runtime. alone, together: how many times as fast as the original in "
        f"{base}, without and with compression."
    )


def _compared(timings: Mapping[str, Sequence[Beside]]) -> bool:
    return any(one.before is not None for timed in timings.values() for one in timed)


def milliseconds(median: float, spread: Latency | None) -> str:
    """A time in three digits, and its percentiles where they are known."""
    values = [median] if spread is None else [median, spread.p10, spread.p90]
    mid, *ends = (f"{v:.3g}" if v < 100 else f"{v:.0f}" for v in values)
    return f"{mid} [{'–'.join(ends)}]" if ends else mid


def base_of(timed: Sequence[Beside]) -> Beside:
    """What speed-ups are over: eager PyTorch, or the first runtime where that is not among them."""
    return next((one for one in timed if one.label == EAGER), timed[0])


def headline(name: str, timed: Sequence[Beside]) -> str:
    """What the fastest runtime gives without compression, and what compression adds there."""
    base, best = base_of(timed), min(timed, key=lambda one: one.least)
    compressed = best.before is not None
    if best is base:
        told = f"{words(base)} is the fastest of these runtimes"
    else:
        steps = _steps(base, best, timed)
        told = f"{steps[0]}{' alone' * compressed} is {gain_words(base.alone / steps[1])} than {words(base)}"
        told += f"; {best.label.partition(':')[2]} adds {_gain(steps[1] / best.alone)}" * (steps[0] != best.label)
    return f"{told}; {_added(name, best.alone / best.now.median)}." if compressed else f"{told}."


def _steps(base: Beside, best: Beside, timed: Sequence[Beside]) -> tuple[str, float]:
    """The runtime of the best, in its first precision where that was timed too, and what the original takes there."""
    runtime = best.label.partition(":")[0]
    plain = next((one for one in timed if one.label == runtime and one is not base), best)
    return plain.label, plain.alone


def words(one: Beside) -> str:
    """The runtime as a sentence names it."""
    return "eager PyTorch" if one.label == EAGER else one.label


def _added(name: str, gain: float) -> str:
    if abs(gain - 1) <= SAME_SHARE:
        return f"{name} adds nothing to that"
    return f"{name} adds {_gain(gain)}" if gain > 1 else f"{name} is {gain_words(gain)} there"


def gain_words(gain: float) -> str:
    """How many times faster or slower something is that takes 1 / `gain` of the time."""
    return f"{_gain(gain)} times faster" if gain >= 1 else f"{_gain(1 / gain)} times slower"


def not_faster(name: str, shares: Sequence[tuple[str, float]]) -> list[str]:
    """A line where a network is not faster than its original in some runtimes, of which `shares` has the times."""
    slower = [f"{label} ({share:.2f} of its latency)" for label, share in shares if share >= 1]
    if len(shares) == 1 and slower:
        where = "" if shares[0][0] == EAGER else f" in {shares[0][0]}"
        return [f"{name} is not faster than the original{where}: {shares[0][1]:.2f} of its latency."]
    return [f"{name} is not faster than the original in {', '.join(slower)}."] if slower else []


def _gain(gain: float) -> str:
    return f"{gain:.2f}" if gain < 2 else f"{gain:.1f}"
