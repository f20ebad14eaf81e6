"""Filters that share directions of the input channels (colours), searched for with the distances of a metric.

A filter W_f [C, P] is approximated by u·vᵀ: a colour u [C] that it shares with the other filters of its cluster, and
coefficients v [P] of its own. In one of the two forms below the best v of every filter for every colour has a closed
form, and so has the best colour of a cluster for given v: with the exact balanced assignment this is Lloyd's algorithm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from torch.nn.functional import normalize

from cnncompress.maths.clustering import TOLERANCE, assign
from cnncompress.metrics import Metric

PROBE_STEPS = 2  # steps of every start, before the best one goes on
MAX_STEPS = 15
ENTRIES_FOR_ALL_STARTS = (
    2**18
)  # entries of a metric up to which all starts go on, as many as `STARTS_WHERE_SMALL` times those asked for
STARTS_WHERE_SMALL = 5
ENTRIES_AT_ONCE = 2**24  # entries of the matrices [C, C] that are held at once


class Quadratic:
    """Σ_f γ_f·tr(δ_f Σ δ_fᵀ), δ_f the error of a filter: Γ by its diagonal, as colours are chosen filter by filter."""

    def __init__(
        self, weight: Float[Tensor, "f c *taps"], sigma: Float[Tensor, "n n"], gamma: Float[Tensor, " f"] | None = None
    ) -> None:
        F, C = weight.shape[:2]
        rows, sigma = weight.double().flatten(1), sigma.double()
        P = rows.shape[1] // C
        seen = rows @ sigma
        self.scale = rows.new_ones(F) if gamma is None else gamma.double()
        self.total = self.scale * (seen * rows).sum(1)
        self.seen = seen.reshape(F, C, P)
        self.sigma = sigma.reshape(C, P, C, P)
        self.by_positions = self.sigma.permute(1, 3, 0, 2).reshape(P * P, C * C)
        self.small = sigma.numel() <= ENTRIES_FOR_ALL_STARTS

    def fit(self, colours: Float64[Tensor, "k c"]) -> tuple[Float64[Tensor, "f k"], Float64[Tensor, "f k p"]]:
        """The error of every filter with every colour [K, C], [F, K], and the coefficients, [F, K, P]."""
        C, P = self.sigma.shape[:2]
        half = (colours @ self.sigma.reshape(C, -1)).reshape(-1, P, C, P)
        moments = torch.einsum("kpcq,kc->kpq", half, colours)
        right = torch.einsum("fcp,kc->kpf", self.seen, colours)
        solved = torch.cholesky_solve(right, torch.linalg.cholesky((moments + moments.mT) / 2))
        costs = self.total[:, None] - self.scale[:, None] * (right * solved).sum(1).T
        return costs, solved.permute(2, 0, 1)

    def update(
        self, colours: Float64[Tensor, "k c"], labels: Int[Tensor, " f"], coefficients: Float64[Tensor, "f p"]
    ) -> Float64[Tensor, "k c"]:
        """The best colours [K, C] for the coefficients [F, P] of the filters with these labels."""
        (K, C), P = colours.shape, coefficients.shape[1]
        scaled = self.scale[:, None] * coefficients
        pairs = (scaled[:, :, None] * coefficients[:, None]).flatten(1)
        pairs = pairs.new_zeros(K, P * P).index_add_(0, labels, pairs)
        wanted = torch.einsum("fcp,fp->fc", self.seen, scaled)
        wanted = wanted.new_zeros(K, C).index_add_(0, labels, wanted)
        lines, part = [], max(1, ENTRIES_AT_ONCE // C**2)
        for pair, right, before in zip(pairs.split(part), wanted.split(part), colours.split(part), strict=True):
            moments = (pair @ self.by_positions).reshape(-1, C, C)
            level = moments.diagonal(dim1=1, dim2=2).sum(1)[:, None]
            idle = level <= 0  # a cluster of zeros
            eye = torch.eye(C, dtype=moments.dtype)
            moments = torch.where(idle[:, :, None], eye, moments / torch.where(idle, 1, level)[:, :, None])
            solved = torch.linalg.solve(moments, torch.where(idle, before, right / torch.where(idle, 1, level)))
            lines.append(solved)
        return unit(torch.cat(lines), colours)


class Weighted:
    """Σ a·δ², with a weight a [F, C, kh, kw] for every entry."""

    def __init__(self, weight: Float[Tensor, "f c *taps"], squares: Float[Tensor, "f c *taps"]) -> None:
        self.squares = squares.double().flatten(2)
        self.seen = self.squares * weight.double().flatten(2)
        self.total = (self.seen * weight.double().flatten(2)).sum((1, 2))
        self.small = squares.numel() <= ENTRIES_FOR_ALL_STARTS

    def fit(self, colours: Float64[Tensor, "k c"]) -> tuple[Float64[Tensor, "f k"], Float64[Tensor, "f k p"]]:
        """As `Quadratic.fit`."""
        right = torch.einsum("fcp,kc->fkp", self.seen, colours)
        solved = right / torch.einsum("fcp,kc->fkp", self.squares, colours.square())
        return self.total[:, None] - (right * solved).sum(2), solved

    def update(
        self, colours: Float64[Tensor, "k c"], labels: Int[Tensor, " f"], coefficients: Float64[Tensor, "f p"]
    ) -> Float64[Tensor, "k c"]:
        """As `Quadratic.update`."""
        right = torch.einsum("fcp,fp->fc", self.seen, coefficients)
        level = torch.einsum("fcp,fp->fc", self.squares, coefficients.square())
        right, level = (torch.zeros_like(colours).index_add_(0, labels, part) for part in (right, level))
        return unit(torch.where(level > 0, right / torch.where(level > 0, level, 1), 0), colours)


Form = Quadratic | Weighted


@dataclass(frozen=True)
class Lines:
    """Unit `colours` [K, C], each filter's `labels` [F] in 0..K−1 and `coefficients` [F, P].

    `history` has the error after every step, never rising (to rounding error).
    """

    colours: Float64[Tensor, "k c"]
    labels: Int[Tensor, " f"]
    coefficients: Float64[Tensor, "f p"]
    history: tuple[float, ...]

    @property
    def order(self) -> Int[Tensor, " f"]:
        """The filters sorted by colour, [F]: K runs of equal length."""
        return torch.argsort(self.labels, stable=True)


def form_of(weight: Float[Tensor, "f c *taps"], metric: Metric) -> Form | None:
    """The form for the colours of a weight [F, C, kh, kw]; None where the metric has no dense moment."""
    if metric.alpha is not None:
        squares = metric.alpha.double().square().reshape(weight.shape)
        return Weighted(weight, squares.clamp_min(torch.finfo(squares.dtype).tiny))
    if metric.sigma is None or metric.sigma.dense is None:
        return None
    return Quadratic(weight, metric.sigma.dense, None if metric.gamma is None else metric.gamma.diagonal())


def find_lines(form: Form, starts: Sequence[Float[Tensor, "k c"]]) -> Lines:
    """Colours and balanced clusters of small error: each start [K, C], or the one that leads best, to its end."""
    probes = [descend(form, colours, MAX_STEPS if form.small else PROBE_STEPS) for colours in starts]
    best = min(probes, key=lambda lines: lines.history[-1])
    return best if form.small else descend(form, best.colours, MAX_STEPS)


def descend(form: Form, colours: Float[Tensor, "k c"], steps: int) -> Lines:
    """Lloyd's algorithm from colours [K, C], whose number divides that of the filters, until the error stands still."""
    colours = unit(colours.double(), torch.ones_like(colours.double()))
    costs, coefficients = form.fit(colours)
    everyone, history = torch.arange(len(costs)), list[float]()
    while True:
        labels = assign(costs)
        colours = form.update(colours, labels, coefficients[everyone, labels])
        costs, coefficients = form.fit(colours)
        history.append(float(costs[everyone, labels].sum()))
        stalled = len(history) > 1 and history[-1] >= (1 - TOLERANCE) * history[-2]
        if stalled or len(history) == steps:
            return Lines(colours, labels, coefficients[everyone, labels], tuple(history))


def unit(vectors: Float64[Tensor, "k c"], instead: Float[Tensor, "k c"]) -> Float64[Tensor, "k c"]:
    """Rows [K, C] of length one; those of length zero are taken from `instead`."""
    usable = (vectors != 0).any(1, keepdim=True) & torch.isfinite(vectors).all(1, keepdim=True)
    vectors = torch.where(usable, vectors / vectors.abs().amax(1, keepdim=True), instead)
    return normalize(vectors, dim=1)
