"""A weight as a sum of products that see a part of the inputs each: the best products, and partitions of channels.

Weights are those of one group, [F, C, kh, kw]. A partition is an order of the channels [C]: equal runs of it are the
parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from cnncompress.maths.clustering import assign
from cnncompress.maths.linalg import psd_root, truncated_svd
from cnncompress.metrics import Metric

STEPS = 30  # of assigning channels to subspaces, at most
GAIN = 1e-3  # a sweep over the parts that lowers the error by less than this share of it is the last one


@dataclass(frozen=True)
class Products:
    """Of each part, outputs [F, d] and inputs [d, s]: the weight is the sum of their products, each at its inputs.

    `error` is the metric's squared error.
    """

    outputs: list[Tensor]
    inputs: list[Tensor]
    error: float


def fit_products(
    matrix: Float64[Tensor, "f n"],
    parts: Sequence[Tensor],
    ranks: Sequence[int],
    metric: Metric,
    sweeps: int,
    start: Products | None = None,
) -> Products:
    """The products of such ranks that fit a weight [F, n] in a separable metric, each on the inputs [s] of its part.

    Given the others, the optimum of a part is a regression of what they leave on its inputs S, of reduced rank (Izenman
    1975): with Σ[S, S] = R·Rᵀ and Γ = L·Lᵀ, the best approximation of Lᵀ·X·Σ[:, S]·R⁻ᵀ. So no sweep over the parts
    raises the error. Parts that are apart begin with what each is by itself, which is the end where inputs of different
    parts are uncorrelated; parts that overlap begin with what those before them leave. A `start` is gone on from.
    """
    left, apart = metric.left_root, sum(map(len, parts)) == len(torch.cat(list(parts)).unique())
    seen = [_rows(metric, places, matrix) for places in parts]
    roots = [_root(rows, places) for rows, places in zip(seen, parts, strict=True)]
    delta, found = matrix.clone(), []
    for i, (places, rows, root, rank) in enumerate(zip(parts, seen, roots, ranks, strict=True)):
        if start is None:
            wanted = matrix[:, places] @ rows[:, places] if apart else delta @ rows.mT
            found.append(_reduced_rank(wanted, root, left, rank))
        else:
            found.append((start.outputs[i], start.inputs[i]))
        delta[:, places] -= torch.matmul(*found[-1])
    errors = [metric.squared_error(delta)]
    for _ in range(0 if apart and metric.sigma is None else sweeps):
        for i, (places, rows, root, rank) in enumerate(zip(parts, seen, roots, ranks, strict=True)):
            before = torch.matmul(*found[i])
            found[i] = _reduced_rank(delta @ rows.mT + before @ rows[:, places], root, left, rank)
            delta[:, places] += before - torch.matmul(*found[i])
        errors.append(metric.squared_error(delta))
        if errors[-2] - errors[-1] <= GAIN * errors[-2]:
            break
    return Products([outputs for outputs, _ in found], [inputs for _, inputs in found], errors[-1])


def inputs_of(order: Int[Tensor, " c"], parts: int, taps: int) -> Int[Tensor, "g s"]:
    """The inputs, in the order of `weight.flatten(1)`, of each part of the channels [C]."""
    return torch.arange(len(order) * taps).reshape(len(order), taps)[order].reshape(parts, -1)


def _rows(metric: Metric, places: Int[Tensor, " s"], like: Tensor) -> Float64[Tensor, "s n"]:
    """Σ[places, :]."""
    if metric.sigma is not None and metric.sigma.dense is not None:
        return metric.sigma.dense[places].double()
    chosen = like.new_zeros(len(places), like.shape[1])
    chosen[torch.arange(len(places)), places] = 1
    return chosen if metric.sigma is None else metric.sigma.times(chosen)


def _root(rows: Float64[Tensor, "s n"], places: Int[Tensor, " s"]) -> Float64[Tensor, "s s"]:
    inner = rows[:, places]
    return psd_root((inner + inner.mT) / 2, 1e-12)


def _reduced_rank(
    wanted: Float64[Tensor, "f s"], root: Float64[Tensor, "s s"], left: Float64[Tensor, "f f"] | None, rank: int
) -> tuple[Float64[Tensor, "f {rank}"], Float64[Tensor, "{rank} s"]]:
    """A [F, d] and B [d, s] with A·B·R·Rᵀ nearest to `wanted`; what is more than the rank of it is zero."""
    target = torch.linalg.solve_triangular(root, wanted.mT, upper=False).mT
    target = target if left is None else left.mT @ target
    U, S, Vh = truncated_svd(target, min(rank, *target.shape))
    share = S.sqrt()
    first, second = U * share, share[:, None] * Vh
    first = first if left is None else torch.linalg.solve_triangular(left.mT, first, upper=True)
    second = torch.linalg.solve_triangular(root.mT, second.mT, upper=True).mT
    more = rank - len(S)
    return torch.nn.functional.pad(first, (0, more)), torch.nn.functional.pad(second, (0, 0, 0, more))


# --- partitions ---


def scaled_channels(weight: Tensor, metric: Metric) -> Float64[Tensor, "c f p"]:
    """What each channel contributes, [C, F, kh·kw], in the scale of a separable metric."""
    F, C = weight.shape[:2]
    left, right = metric.whitener(F, C, (True, False))
    return torch.einsum("fg,fcp,cd->dgp", left, weight.double().flatten(2), right)


def subspace_partition(
    channels: Float64[Tensor, "c f p"], start: Int[Tensor, " c"], parts: int, dim: int
) -> tuple[Int[Tensor, " c"], float]:
    """An order of channels [C, F, P] in equal parts that each leave little outside of `dim` dimensions of F, and that.

    Lloyd's algorithm with the exact balanced assignment, from an order: a part's subspace holds most of its channels,
    then every channel goes where most of it is kept. Neither step raises what is left.
    """
    order, lengths = start, channels.square().sum((1, 2))
    best, left_out = start, float("inf")
    for _ in range(STEPS):
        members = order.reshape(parts, -1)
        bases = _bases(channels[members].transpose(1, 2).flatten(2), dim)
        kept = torch.einsum("gfd,cfp->cgdp", bases, channels).square().sum((2, 3))
        labels = torch.empty_like(order).index_copy_(0, order, torch.arange(parts).repeat_interleave(members.shape[1]))
        now = float((lengths - kept.gather(1, labels[:, None])[:, 0]).sum())
        if now >= left_out * (1 - 1e-9):
            break
        best, left_out = order, now
        order = torch.argsort(assign(lengths[:, None] - kept), stable=True)
    return best, max(left_out, 0.0)


def _bases(parts: Float64[Tensor, "g f n"], dim: int) -> Float64[Tensor, "g f d"]:
    """Orthonormal bases [g, F, d] of the leading `dim` directions of matrices [g, F, n], or of all n."""
    F, n = parts.shape[1:]
    if n >= F:
        return torch.linalg.eigh(parts @ parts.mT)[1][..., -dim:]
    return torch.linalg.svd(parts, full_matrices=False)[0][..., :dim]


# --- filters that see one part alone ---


@dataclass(frozen=True)
class Blocks:
    """Filters [F], equal runs of which see one part of the channels [C] each, and their kernels [F, c·kh·kw] in order.

    `error` is the metric's squared error.
    """

    order: Int[Tensor, " c"]
    filters: Int[Tensor, " f"]
    kernels: Float64[Tensor, "f n"]
    error: float


def fit_blocks(weight: Tensor, order: Int[Tensor, " c"], parts: int, metric: Metric) -> Blocks:
    """The filters of each part of the channels, and what every filter becomes by regression on its part.

    A filter goes where most of it is explained, with Γ's diagonal for its importance. What Γ says of filters together
    is left out.
    """
    F, C = weight.shape[:2]
    matrix = weight.double().flatten(1)
    columns = inputs_of(order, parts, matrix.shape[1] // C)
    importance = matrix.new_ones(F) if metric.gamma is None else metric.gamma.diagonal().double()
    explained, solved = [], []
    for places in columns:
        kernels, energy = regression(matrix, places, metric)
        explained.append(energy * importance)
        solved.append(kernels)
    labels = assign(-torch.stack(explained, 1))
    filters = torch.argsort(labels, stable=True)
    kernels = torch.stack(solved)[labels[filters], filters]
    approximation = torch.zeros_like(matrix)
    approximation.scatter_(1, columns[labels[filters]], kernels)
    delta = matrix.index_select(0, filters) - approximation
    back = torch.empty_like(delta).index_copy_(0, filters, delta)
    return Blocks(order, filters, kernels, metric.squared_error(back))


def regression(
    matrix: Float64[Tensor, "f n"], places: Int[Tensor, " s"], metric: Metric
) -> tuple[Float64[Tensor, "f s"], Float64[Tensor, " f"]]:
    """Filters [f, n] by their inputs at `places` alone: [f, s], and what the form loses less by that than by zero.

    Γ, which says something of filters together, is left out.
    """
    if metric.alpha is not None:
        return matrix[:, places], (metric.alpha.double() * matrix)[:, places].square().sum(1)
    rows = _rows(metric, places, matrix)
    root = _root(rows, places)
    half = torch.linalg.solve_triangular(root, rows @ matrix.mT, upper=False)
    return torch.linalg.solve_triangular(root.mT, half, upper=True).mT, half.square().sum(0)


def block_partition(energy: Float64[Tensor, "c f"], start: Int[Tensor, " c"], parts: int) -> Int[Tensor, " c"]:
    """An order of channels whose equal parts, each with as many of the filters, hold much of the energy [C, F].

    Channels and filters are assigned in turn, exactly and balanced; neither step lowers what is held.
    """
    order, held = start, -1.0
    for _ in range(STEPS):
        filters = assign(-energy[order].unflatten(0, (parts, -1)).sum(1).mT)
        by_part = energy.new_zeros(len(energy), parts).index_add_(1, filters, energy)
        labels = assign(-by_part)
        now = float(by_part.gather(1, labels[:, None]).sum())
        if now <= held * (1 + 1e-9):
            break
        order, held = torch.argsort(labels, stable=True), now
    return order
