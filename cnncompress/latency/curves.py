"""Times of a method's chains at all ranks from the times at some of them."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cnncompress.chains.lowering import lower, paddings, regroupings
from cnncompress.chains.spec import Call, Chain, ConvSpec, Rank
from cnncompress.latency.chains import Job

# Ranks that are measured: multiples of what one vector instruction does, two an octave.
GRID = (8, *sorted(base << i for base in (16, 24) for i in range(16)))
WORTH_SHARE = 0.95  # a lowering is worth having below this share of the plain chain's time

Clock = Callable[[Job], float]
Line = tuple[list[int], list[float]]


@dataclass(frozen=True)
class Timed:
    """Milliseconds of a batch over all calls of a layer, and the lowering with which the chain takes them."""

    milliseconds: float
    lowering: str


def are_widths(rank: Rank, names: Sequence[str]) -> list[bool]:
    """Which components of a rank are numbers of channels; the others count clusters or colours."""
    fixed = len(rank) - len(names)
    return [i >= fixed and names[i - fixed].startswith("K") for i in range(len(rank))]


def structure(rank: Rank, names: Sequence[str]) -> Rank:
    """The part of a rank that counts no channels; chains that agree in it differ in their widths alone."""
    return tuple(r for r, width in zip(rank, are_widths(rank, names), strict=True) if not width)


def anchor_ranks(rank: Rank, full: Rank, names: Sequence[str]) -> list[Rank]:
    """The measured ranks next to `rank`, below and above it, of the same structure."""
    widths = are_widths(rank, names)
    below, above = (lambda r: GRID[max(bisect_right(GRID, r) - 1, 0)]), (lambda r: GRID[bisect_left(GRID, r)])
    return [
        tuple(min(near(r), f) if width else r for r, f, width in zip(rank, full, widths, strict=True))
        for near in (below, above)
    ]


def regrouped_jobs(spec: ConvSpec, chain: Chain) -> list[Job]:
    """A chain for a layer `spec` as it is, and with its grouped convolutions in other ways."""
    return [Job(chain), *(Job(lower(chain, word), word) for word in regroupings(spec, chain))]


def padded_jobs(chain: Chain) -> list[Job]:
    """A chain as it is, and widened."""
    return [Job(chain), *(Job(lower(chain, word), word) for word in paddings(chain))]


def choose_probe(chains: Sequence[tuple[Rank, Chain]]) -> tuple[Rank, Chain] | None:
    """The chain that padding is measured on, with its rank; None where no chain can be padded.

    It is the middle one of the chains with the most paddings.
    """
    ways = [len(paddings(chain)) for _, chain in chains]
    odd = [one for one, number in zip(chains, ways, strict=True) if number == max(ways)]
    return odd[len(odd) // 2] if max(ways, default=0) else None


class Curves:
    """Time by rank: monotone and piecewise linear in the multiply-accumulates, for each lowering.

    `jobs` are the chains that were measured at the widths of `GRID`, by structure, each plain one followed by its
    lowerings. `probe` is the structure of a chain of another width, and that chain: it shows what such widths cost, and
    whether padding them helps. `clock` gives the measured times.
    """

    def __init__(
        self, call: Call, jobs: Mapping[Rank, Sequence[Job]], probe: tuple[Rank, Chain] | None, clock: Clock
    ) -> None:
        self.call = call
        self.curves = {kind: self._lines(own, clock) for kind, own in jobs.items()}
        self.padding, self.slower = "", 1.0
        if probe is not None:
            plain, *padded = padded_jobs(probe[1])
            best = min(padded, key=clock)
            self.slower = max(1.0, clock(plain) / self._at(*probe, ""))
            self.padding = best.lowering if clock(best) < WORTH_SHARE * clock(plain) else ""

    def __call__(self, kind: Rank, chain: Chain) -> Timed:
        """The time of a plain chain of structure `kind`, with its fastest lowering."""
        odd = bool(paddings(chain))
        plain = self._at(kind, chain, "") * (self.slower if odd else 1)
        others = {word: self._at(kind, chain, word) for word in self._usable(kind, chain)}
        if odd and self.padding:
            others[self.padding] = self._at(kind, lower(chain, self.padding), "")
        best = min(others, key=lambda word: others[word], default="")
        return Timed(others[best], best) if best and others[best] < WORTH_SHARE * plain else Timed(plain, "")

    def _usable(self, kind: Rank, chain: Chain) -> list[str]:
        """The lowerings of this chain that were measured, of chains that are no cheaper."""
        macs = self.call.macs_of(chain)
        possible = regroupings(self.call.spec, chain)
        return [word for word, (at, _) in self.curves[kind].items() if word in possible and macs <= at[-1]]

    def _lines(self, jobs: Sequence[Job], clock: Clock) -> dict[str, Line]:
        points: dict[str, dict[int, float]] = {}
        for job in jobs:
            if not job.lowering:
                macs = self.call.macs_of(job.chain)
            if (spent := clock(job)) < math.inf:  # a lowering may not run here
                points.setdefault(job.lowering, {})[macs] = spent
        return {word: _monotone(at) for word, at in points.items()}

    def _at(self, kind: Rank, chain: Chain, lowering: str) -> float:
        return float(np.interp(self.call.macs_of(chain), *self.curves[kind][lowering]))


def _monotone(points: Mapping[int, float]) -> Line:
    """MACs in ascending order with times that never fall: the nearest such ones in least squares."""
    from sklearn.isotonic import isotonic_regression  # half a second to import, which plans without times do without

    macs = sorted(points)
    return macs, [float(t) for t in isotonic_regression([points[m] for m in macs])]
