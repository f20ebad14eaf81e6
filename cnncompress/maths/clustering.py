"""Balanced k-means: clusters of equal size, as grouped convolutions need them. Tensors only, float64 inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

# A step that lowers the energy by less than this share of it ends a run.
TOLERANCE = 1e-6
# Directions of a cluster with less than this share of the points' energy are rounding errors.
NOISE = 1e-12


@dataclass(frozen=True)
class Clustering:
    """`labels` [n] in 0..k−1, named in the order of first appearance; `energy` the sum of distances to the centres.

    `history` has the energy after every step, never rising (to rounding error); the last one is `energy`.
    """

    labels: Int[Tensor, " n"]
    energy: float
    history: tuple[float, ...]

    @property
    def order(self) -> Int[Tensor, " n"]:
        """The points sorted by cluster, [n]: k runs of equal length."""
        return torch.argsort(self.labels, stable=True)


def divisors(n: int) -> list[int]:
    """All divisors of n, ascending."""
    return [d for d in range(1, n + 1) if n % d == 0]


def nearest_divisor(n: int, about: int) -> int:
    """The divisor of n that is nearest to `about` as a ratio; the smaller of two."""
    return min(divisors(n), key=lambda d: max(d / about, about / d))


def balanced_kmeans(
    points: Float[Tensor, "n d"],
    k: int,
    *,
    subspace: int | None = None,
    restarts: int = 10,
    seed: int = 0,
    max_iter: int = 100,
) -> Clustering:
    """Divide points [n, d] into k clusters of n/k points with a small sum of distances to their centres.

    A distance is ‖x − mean‖² or, to a `subspace` of so many dimensions, ‖x‖² − ‖Uᵀx‖², U the leading left singular
    vectors of the cluster, which sees a point and its negative as the same (Denton et al. 2014 §3.4). Lloyd's algorithm
    with the exact balanced assignment, from `restarts` seeded starts (for subspaces, from a spectral one too); the
    lowest energy is kept. The same arguments give the same clusters. Raises ValueError where k does not divide n.
    """
    n = len(points)
    if points.dim() != 2 or k < 1 or n % k:
        raise ValueError(f"points of shape {tuple(points.shape)} cannot be divided into {k} clusters of equal size")
    if min(1 if subspace is None else subspace, restarts, max_iter) < 1:
        raise ValueError(f"subspace, restarts and max_iter are at least 1, not {subspace}, {restarts} and {max_iter}")
    generator = torch.Generator().manual_seed(seed)
    # Both distances depend on inner products only, so that d matters no more from here on.
    points = points.detach().cpu().double()
    gram = points @ points.mT
    pairwise = _distances(gram, torch.arange(n)[:, None], subspace)
    starts = [assign(pairwise[:, _spread(pairwise, k, generator)]) for _ in range(restarts if 1 < k < n else 1)]
    if subspace is not None and 1 < k < n:
        starts.insert(0, _spectral(gram, k, restarts, seed))
    runs = (_lloyd(gram, start, k, subspace, max_iter) for start in starts)
    nothing = NOISE * float(gram.trace())  # what is as good as zero is a tie, for the first
    best = min(runs, key=lambda run: max(run.energy, nothing))
    return Clustering(_renamed(best.labels, k), best.energy, best.history)


def assign(costs: Float[Tensor, "n k"], slots: Sequence[int] | None = None) -> Int[Tensor, " n"]:
    """Labels [n] of the cheapest assignment of n points to k clusters for costs [n, k].

    Each cluster has n/k slots, or as many of n as `slots` says.
    """
    n, k = costs.shape
    owners = torch.arange(k).repeat_interleave(torch.tensor(slots or [n // k] * k))
    return owners[torch.from_numpy(linear_sum_assignment(costs[:, owners].numpy())[1])]


def _lloyd(
    gram: Float64[Tensor, "n n"], labels: Int[Tensor, " n"], k: int, dim: int | None, max_iter: int
) -> Clustering:
    history: list[float] = []
    while True:
        members = torch.argsort(labels, stable=True).reshape(k, -1)
        distances = _distances(gram, members, dim)
        history.append(float(distances.gather(1, labels[:, None]).sum()))
        stalled = len(history) > 1 and history[-1] >= (1 - TOLERANCE) * history[-2]
        if stalled or len(history) == max_iter:
            return Clustering(labels, history[-1], tuple(history))
        labels = assign(distances)


def _distances(gram: Float64[Tensor, "n n"], members: Int[Tensor, "k size"], dim: int | None) -> Float64[Tensor, "n k"]:
    """Distances [n, k] of all points to the means (`dim` None) or the subspaces of k clusters, members [k, size].

    With XXᵀ = V·diag(λ)·Vᵀ for the members X of a cluster, its leading directions are XᵀVλ^(−1/2).
    """
    inner, across = gram[members[:, :, None], members[:, None, :]], gram[:, members]
    lengths = gram.diagonal()[:, None]
    if dim is None:
        return (lengths - 2 * across.mean(2) + inner.mean((1, 2))).clamp_min(0)
    values, vectors = (x[..., -dim:] for x in torch.linalg.eigh(inner))
    inverse_root = torch.where(values > NOISE * gram.trace(), values, torch.inf).rsqrt()
    projected = torch.einsum("nks,ksd->nkd", across, vectors * inverse_root[:, None])
    return (lengths - projected.square().sum(2)).clamp_min(0)


def _spread(pairwise: Float64[Tensor, "n n"], k: int, generator: torch.Generator) -> Int[Tensor, " {k}"]:
    """k different points, each drawn with the odds of its distance to the nearest one before it (k-means++)."""
    n = len(pairwise)
    free = torch.ones(n, dtype=torch.bool)
    nearest = torch.ones(n, dtype=torch.float64)
    seeds = []
    for step in range(k):
        odds = nearest * free
        odds = odds if odds.sum() > 0 else free.double()
        seeds.append(int(torch.multinomial(odds, 1, generator=generator)))
        free[seeds[-1]] = False
        column = pairwise[:, seeds[-1]]
        nearest = torch.minimum(nearest, column) if step else column
    return torch.tensor(seeds)


def _spectral(gram: Float64[Tensor, "n n"], k: int, restarts: int, seed: int) -> Int[Tensor, " n"]:
    """Labels by the squared cosines between points: k-means on the leading eigenvectors of their normalised matrix.

    Subspaces of several dimensions are seldom found from single points, but their points are alike in this sense.
    """
    lengths = gram.diagonal().clamp_min(torch.finfo(gram.dtype).tiny)
    alike = gram.square() / lengths / lengths[:, None]
    degrees = alike.sum(1).clamp_min(torch.finfo(gram.dtype).tiny).sqrt()
    vectors = torch.linalg.eigh(alike / degrees / degrees[:, None])[1][:, -k:]
    return balanced_kmeans(torch.nn.functional.normalize(vectors), k, restarts=restarts, seed=seed).labels


def _renamed(labels: Int[Tensor, " n"], k: int) -> Int[Tensor, " n"]:
    """The same clusters, numbered in the order of their first points."""
    first = torch.stack([(labels == c).nonzero()[0, 0] for c in range(k)])
    return torch.argsort(torch.argsort(first))[labels]
