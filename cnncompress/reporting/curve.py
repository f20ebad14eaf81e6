"""A curve of budgets: what each leaves, what it was predicted and measured to cost, and which to choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from cnncompress.chains.plan import Budget
from cnncompress.reporting.rows import Row

LIMITS = (0.5, 1.0, 2.0)  # points of top-1 that may be lost
ORDER = (1.0, 0.5, 2.0)  # in which they are looked for


@dataclass(frozen=True)
class Measured:
    """The row of a network that was made, and how far its answers are from the original's, in nats an image."""

    row: Row
    divergence: float


@dataclass(frozen=True)
class Point:
    """A share of a cost to plan within, and the plan: shares `left`, the predicted rise of the loss, changed layers.

    `rise` is None where no plan meets the budget, and `refused` then says so.
    """

    cost: str
    share: float
    left: Mapping[str, float] = field(default_factory=dict)
    rise: float | None = None
    layers: int = 0
    refused: str = ""
    measured: Measured | None = None

    @property
    def budget(self) -> Budget:
        """What is planned within."""
        return Budget(**{self.cost: self.share})

    @property
    def measurable(self) -> bool:
        """True where there is a plan that changes something."""
        return self.rise is not None and self.layers > 0


@dataclass(frozen=True)
class Curve:
    """The points of one cost, the cheapest first, and the original that they are compared with."""

    points: tuple[Point, ...]
    original: Row | None = None

    @property
    def cost(self) -> str:
        """The cost that is planned for."""
        return self.points[0].cost

    @property
    def reached(self) -> list[Point]:
        """The points that have a plan."""
        return [point for point in self.points if point.rise is not None]

    def change(self, point: Point) -> float | None:
        """The measured change of top-1 in points; None where it was not measured."""
        before = None if self.original is None else self.original.top1
        after = None if point.measured is None else point.measured.row.top1
        return None if before is None or after is None else after - before

    def expected(self, point: Point) -> float | None:
        """The change of top-1: measured, or between those of the measured points that are predicted next to it.

        A network that changes nothing loses nothing. None beyond what was measured.
        """
        if (known := self.change(point)) is not None or point.rise is None:
            return known
        found = [(p.rise, change) for p in self.points if p.rise and (change := self.change(p)) is not None]
        knots = [(0.0, 0.0), *sorted(found)]
        for (low, left), (high, right) in pairwise(knots):
            if low <= point.rise <= high:
                return left + (right - left) * (point.rise - low) / max(high - low, 1e-300)
        return None

    def knee(self) -> Point | None:
        """The point below which the predicted loss rises fastest, None for fewer than three points or a flat curve.

        It is the one farthest below the straight line between both ends, both axes scaled to [0, 1] (Satopää et al.
        2011, "Finding a 'Kneedle' in a Haystack", for a falling convex curve).
        """
        points = self.reached
        rises = [point.rise or 0.0 for point in points]
        if len(points) < 3 or max(rises) == min(rises):
            return None
        first, last = points[0].share, points[-1].share
        span = max(rises) - min(rises)
        below = [
            1 - (p.share - first) / (last - first) - (rise - min(rises)) / span
            for p, rise in zip(points, rises, strict=True)
        ]
        return points[below.index(max(below))]

    def cheapest(self, limit: float) -> Point | None:
        """The point of the least share that is expected to lose at most `limit` points of top-1."""
        kept = ((point, self.expected(point)) for point in self.reached)
        return next((point for point, change in kept if change is not None and change >= -limit), None)

    def next_to_measure(self) -> Point | None:
        """The point that tells most: the knee, then those between what loses too much and what does not.

        Without accuracies they are spread out. None where all are measured.
        """
        points = [point for point in self.points if point.measurable]
        left = [i for i, point in enumerate(points) if point.measured is None]
        if not left:
            return None
        knee = self.knee() or points[len(points) // 2]
        if knee in points and knee.measured is None:
            return knee
        changes = {i: change for i, point in enumerate(points) if (change := self.change(point)) is not None}
        for limit in ORDER if changes else ():
            too_much = max((i for i, change in changes.items() if change < -limit), default=-1)
            enough = min((i for i, change in changes.items() if change >= -limit), default=len(points))
            if between := [i for i in left if too_much < i < enough]:
                return points[between[len(between) // 2]]
        done = [i for i in range(len(points)) if i not in left]
        return points[max(left, key=lambda i: min((abs(i - j) for j in done), default=0))]

    def agreement(self) -> tuple[int, int]:
        """Of the pairs of measured points, how many diverge in the order that was predicted, and how many there are."""
        found = [(p.rise, p.measured.divergence) for p in self.points if p.measured and p.rise is not None]
        pairs = [(a, b) for i, a in enumerate(found) for b in found[:i]]
        return sum((a[0] - b[0]) * (a[1] - b[1]) > 0 for a, b in pairs), len(pairs)


def curves_of(points: Sequence[Point], original: Row | None) -> list[Curve]:
    """A curve for each cost, in the order in which they come."""
    costs = dict.fromkeys(point.cost for point in points)
    ordered = sorted(points, key=lambda point: point.share)
    return [Curve(tuple(point for point in ordered if point.cost == cost), original) for cost in costs]
