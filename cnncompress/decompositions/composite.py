"""Composite layers: basis filters of several shapes side by side, then a 1×1 (Ioannou et al. 2016)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cnncompress.chains.spec import Chain, ConvSpec, Pair, Permutation, Rank
from cnncompress.chains.stages import Parallel
from cnncompress.decompositions.base import Decomposition, refuse_matrix, register
from cnncompress.decompositions.options import one_of
from cnncompress.decompositions.parts import fit_products, regression
from cnncompress.decompositions.scratch import normal
from cnncompress.errors import UsageError
from cnncompress.maths.clustering import assign
from cnncompress.maths.linalg import rank_one_scaling
from cnncompress.metrics import FROBENIUS, Metric

SHAPES = ("horizontal", "vertical", "full")
SMALL_ENTRIES, SWEEPS, FEW_SWEEPS = 2**15, 60, 6  # of a weight up to which there are many sweeps over the shapes


@register
class Composite(Decomposition):
    """1×kw ‖ kh×1 ‖ kh×kw with C→K in all, then 1×1 K→F.

    `horizontal`, `vertical` and `full` are the shares of the K basis filters, in proportion (1, 1, 0 is half and half;
    the paper's join-wfull is 3, 3, 2). Kernels of one row or column lie in the middle of the whole one. `join` none
    leaves out the 1×1: each of the F filters has one of the shapes, and a permutation puts them in their order. Corners
    of a kernel are only in full basis filters, so that in general no rank is exact.
    """

    name = "composite"
    source = "Ioannou et al. 2016 (low-rank filters)"
    options = {"horizontal": 1, "vertical": 1, "full": 0, "join": "own"}  # noqa: RUF012
    exact = False
    whitens = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        one_of(self, join=("own", "none"))
        self.shares = [int(self.settings[shape]) for shape in SHAPES]
        if min(self.shares) < 0 or not any(self.shares):
            raise UsageError(f"method composite takes shares from 0 on, one of them more, not {self.shares}")

    @property
    def _joins(self) -> bool:
        return self.settings["join"] == "own"

    def refuse(self, spec: ConvSpec) -> str | None:
        """Without a join, filters would have to change places across groups."""
        if spec.groups > 1 and not spec.depthwise and not self._joins:
            return "grouped: its filters would have to change places across groups"
        return super().refuse(spec)

    def group_refuse(self, spec: ConvSpec) -> str | None:
        """A kernel with rows and columns."""
        if 1 in spec.kernel_size and not spec.pointwise:
            kh, kw = spec.kernel_size
            return f"{kh}×{kw}: the kernel has one row or one column already"
        return refuse_matrix(spec)

    # --- ranks and shapes ---

    def group_full_rank(self, spec: ConvSpec) -> Rank:
        """F basis filters, as many as in the paper."""
        return (spec.out_channels,)

    def rank(self, spec: ConvSpec, request: int | float | Sequence[int]) -> Rank:
        """K; without a join every filter is its own."""
        (basis,) = super().rank(spec, request)
        return (basis,) if self._joins else self.full_rank(spec)

    def _basis_filters(self, spec: ConvSpec, rank: Rank) -> int:
        return rank[0] if self._joins else spec.out_channels

    def filters(self, spec: ConvSpec, rank: Rank) -> dict[Pair, int]:
        """How many of the basis filters have each kernel size; shapes without any are left out."""
        (kh, kw), whole, basis = spec.kernel_size, sum(self.shares), self._basis_filters(spec, rank)
        exact = [basis * share / whole for share in self.shares]
        counts = [math.floor(x) for x in exact]
        for i in sorted(range(3), key=lambda i: counts[i] - exact[i])[: basis - sum(counts)]:
            counts[i] += 1
        return {size: n for size, n in zip(((1, kw), (kh, 1), (kh, kw)), counts, strict=True) if n}

    def group_stages(self, spec: ConvSpec, rank: Rank) -> Chain:
        """The branches together keep the layer's geometry."""
        whole = spec.replace(bias=spec.bias and not self._joins)
        basis = Parallel.centred(whole, self.filters(spec, rank))
        if self._joins:
            return basis, ConvSpec(rank[0], spec.out_channels, bias=spec.bias)
        return (basis, Permutation(spec.out_channels)) if len(basis.branches) > 1 else (basis,)

    def group_scratch(self, spec: ConvSpec, rank: Rank, generator: torch.Generator) -> list[Tensor]:
        """σ² = 2 / Σ w·h·d for d filters of w×h of each shape; 1 / K for the 1×1, as nothing is rectified before it."""
        _, *rest = self.group_stages(spec, rank)
        taps = sum(h * w * n for (h, w), n in self.filters(spec, rank).items())
        basis = spec.replace(out_channels=self._basis_filters(spec, rank))
        kernels = [normal(basis.weight_shape, 2 / taps, generator)]
        if self._joins:
            return [*kernels, normal((spec.out_channels, rank[0], 1, 1), 1 / rank[0], generator)]
        return [*kernels, *(torch.arange(stage.in_channels) for stage in rest)]

    # --- fits ---

    def group_factorize(self, weight: Tensor, spec: ConvSpec, rank: Rank, metric: Metric) -> list[Tensor]:
        """Alternating least squares over the shapes, or the shape that explains most of each filter.

        An element-wise metric is taken as a product of two vectors; other forms start from the Frobenius norm's fit.
        """
        weight, basis = weight.double(), self.group_stages(spec, rank)[0]
        assert isinstance(basis, Parallel)
        places, counts = places_of(basis), [branch.out_channels for branch in basis.branches]
        if not self._joins:
            return _filters(
                weight, places, counts, metric if metric.separable or metric.alpha is not None else FROBENIUS
            )
        if metric.alpha is not None:
            a, b = rank_one_scaling(metric.alpha.double())
            a, b = a[:, None, None, None], b.reshape(weight.shape[1:])
            first, last = _basis(a * weight * b, places, counts, FROBENIUS)
            return [first / b, last / a]
        return _basis(weight, places, counts, metric if metric.separable else FROBENIUS)


def _basis(weight: Tensor, places: list[Tensor], counts: list[int], metric: Metric) -> list[Tensor]:
    """The kernels [K, C, kh, kw] and [F, K, 1, 1] of so many basis filters at each of the places."""
    sweeps = SWEEPS if weight.numel() <= SMALL_ENTRIES else FEW_SWEEPS
    best = fit_products(weight.flatten(1), places, counts, metric, sweeps)
    if not metric.plain:  # from another start, as sweeps end in local optima
        plain = fit_products(weight.flatten(1), places, counts, FROBENIUS, sweeps)
        best = min(best, fit_products(weight.flatten(1), places, counts, metric, sweeps, plain), key=lambda p: p.error)
    first = weight.new_zeros(sum(counts), weight[0].numel())
    for rows, where, inputs in zip(torch.arange(len(first)).split(counts), places, best.inputs, strict=True):
        first[rows[:, None], where] = inputs
    return [first.reshape(-1, *weight.shape[1:]), torch.cat(best.outputs, 1)[:, :, None, None]]


def _filters(weight: Tensor, places: list[Tensor], counts: list[int], metric: Metric) -> list[Tensor]:
    """The kernel [F, C, kh, kw] of the filters sorted by place, and the place of each filter among them."""
    matrix = weight.flatten(1)
    fits = [regression(matrix, where, metric) for where in places]
    importance = 1.0 if metric.gamma is None else metric.gamma.diagonal().double()
    labels = assign(-torch.stack([energy * importance for _, energy in fits], 1), counts)
    filters, kernel = torch.argsort(labels, stable=True), torch.zeros_like(matrix)
    for rows, where, (kernels, _) in zip(torch.arange(len(matrix)).split(counts), places, fits, strict=True):
        kernel[rows[:, None], where] = kernels[filters[rows]]
    kernel = kernel.reshape(weight.shape)
    return [kernel, torch.argsort(filters)] if len(counts) > 1 else [kernel]


def places_of(stage: Parallel) -> list[Tensor]:
    """The inputs [s] that each branch of a stage without groups sees, in the order of `weight.flatten(1)`."""
    C, (kh, kw) = stage.in_channels, stage.whole.kernel_size
    inputs, found = torch.arange(C * kh * kw).reshape(C, kh, kw), []
    for branch in stage.branches:
        (y, x), (h, w) = branch.offset, branch.kernel_size
        found.append(inputs[:, y : y + h, x : x + w].flatten())
    return found
