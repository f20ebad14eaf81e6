"""Root modules: a convolution in groups of channels, then a 1×1 that combines them (Ioannou et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from cnncompress.chains.spec import Chain, ConvSpec, Permutation, Rank, Stage
from cnncompress.decompositions.base import Decomposition, refuse_matrix, register
from cnncompress.decompositions.options import one_of
from cnncompress.decompositions.parts import (
    Blocks,
    block_partition,
    fit_blocks,
    fit_products,
    inputs_of,
    regression,
    scaled_channels,
    subspace_partition,
)
from cnncompress.errors import UsageError
from cnncompress.maths.clustering import balanced_kmeans, divisors
from cnncompress.maths.linalg import psd_root, rank_one_scaling
from cnncompress.metrics import FROBENIUS, Metric

SMALL_ENTRIES = 2**15  # of a weight up to which partitions are looked for from random ones too
SWEEPS = 4  # over the parts of a partition, at most
COMPARED = 2  # partitions that are fitted in the metric, those that promise most


@register
class Root(Decomposition):
    """[permutation ·] kh×kw in groups C→F, 1×1 F→F.

    The rank is the number of channels that a filter of the first convolution sees, so that C divided by it is the
    number of groups, which divides C and F. A whole number or a fraction becomes the nearest rank at or below it.

    `groups` asks for a number of groups instead: at the highest resolution of the layers that it divides, halved at
    each lower one (`topology` root), the same everywhere (column), or doubled up to it at the lowest (tree). Numbers
    for one resolution after the other are written 8/4/2/1. `join` network leaves the 1×1 to the one that follows in the
    network, as the paper does. `order` given takes channels as they come; clustered sorts them with a permutation.
    """

    name = "root"
    source = "Ioannou et al. 2017 (Deep Roots)"
    rank_names = ("channels",)
    options = {"groups": "", "topology": "root", "join": "own", "order": "clustered", "restarts": 4, "seed": 0}  # noqa: RUF012
    counts = ("restarts",)
    sizing = ("groups",)
    whitens = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        one_of(self, topology=("root", "column", "tree"), join=("own", "network"), order=("clustered", "given"))
        self.groups = _numbers(str(self.settings["groups"]))

    # --- groups ---

    @property
    def graded(self) -> bool:
        """True where the number of groups depends on the resolution."""
        return len(self.groups) > 1 or (bool(self.groups) and self.settings["topology"] != "column")

    def at_depth(self, resolution: int, resolutions: int) -> Root:
        """The method with the number of groups of one resolution, 0 for the highest."""
        if not self.graded:
            return self
        topology, first = self.settings["topology"], self.groups[0]
        if len(self.groups) > 1:
            groups = self.groups[min(resolution, len(self.groups) - 1)]
        else:
            halvings = {"root": resolution, "tree": resolutions - 1 - resolution}.get(topology, 0)
            groups = max(1, first >> halvings)
        return type(self)(**self.settings | {"groups": str(groups), "topology": "column"})

    def fixed_rank(self, spec: ConvSpec) -> Rank | None:
        """The channels of a group where the number of groups is asked for."""
        return (spec.in_channels // spec.groups // self.groups[0],) if self.groups else None

    def refuse(self, spec: ConvSpec) -> str | None:
        """Grouped convolutions would need a permutation across groups."""
        if spec.groups > 1 and not spec.depthwise and self._sorts:
            return "grouped: its channels would have to change places across groups; order=given takes it"
        return super().refuse(spec)

    def group_refuse(self, spec: ConvSpec) -> str | None:
        """A kernel of several positions whose channels and filters make equal groups."""
        C, F = spec.in_channels, spec.out_channels
        if (reason := refuse_matrix(spec)) is not None:
            return reason
        if self.groups == (1,):
            return "one group is asked for here, which is the layer as it is"
        if self.groups and math.gcd(C, F) % self.groups[0]:
            return f"{C} channels and {F} filters do not make {self.groups[0]} equal groups"
        return f"{C} channels and {F} filters make no equal groups" if math.gcd(C, F) == 1 else None

    @property
    def _sorts(self) -> bool:
        return self.settings["order"] == "clustered"

    # --- ranks and shapes ---

    def group_full_rank(self, spec: ConvSpec) -> Rank:
        """All channels: one group."""
        return (spec.in_channels,)

    def rank(self, spec: ConvSpec, request: int | float | Sequence[int]) -> Rank:
        """The channels of a group; UsageError for an explicit number that does not make equal groups."""
        (asked,) = super().rank(spec, request)
        one = spec.group()
        ranks = [one.in_channels // g for g in reversed(divisors(math.gcd(one.in_channels, one.out_channels)))]
        if asked > ranks[-1]:
            return (asked,)
        if isinstance(request, int | float):
            return (max((r for r in ranks if r <= asked), default=ranks[0]),)
        if asked not in ranks:
            listed = ", ".join(map(str, ranks))
            raise UsageError(f"root: groups of {asked} channels are not to be had of {one}; possible are {listed}")
        return (asked,)

    def group_stages(self, spec: ConvSpec, rank: Rank) -> Chain:
        """The grouped stage keeps the layer's geometry; permutations that would change nothing are left out."""
        C, F, groups, joins = spec.in_channels, spec.out_channels, _count(spec, rank), self.settings["join"] == "own"
        first: Stage = spec.replace(groups=groups, bias=spec.bias and not joins)
        chain = [first, ConvSpec(F, F, bias=spec.bias)] if joins else [first]
        if self._sorts and 1 < groups < C:
            chain.insert(0, Permutation(C))
        return tuple([*chain, Permutation(F)] if self._sorts and groups > 1 and not joins else chain)

    # --- fits ---

    def quick(self) -> Root:
        """One random start."""
        return type(self)(**self.settings | {"restarts": 1})

    def group_factorize(self, weight: Tensor, spec: ConvSpec, rank: Rank, metric: Metric) -> list[Tensor]:
        """A partition of the channels, then the best products (or filters) of its parts in the metric.

        An element-wise metric is taken as a product of two vectors; other forms start from the Frobenius norm's fit.
        """
        groups, weight = _count(spec, rank), weight.double()
        if self.settings["join"] == "network":
            return self._blocks(weight, groups, metric if metric.separable or metric.alpha is not None else FROBENIUS)
        if metric.alpha is None:
            return self._products(weight, groups, metric if metric.separable else FROBENIUS)
        a, b = rank_one_scaling(metric.alpha.double())
        a, b = a[:, None, None, None], b.reshape(weight.shape[1:])
        *order, first, last = self._products(a * weight * b, groups, FROBENIUS)
        seen = b[order[0]] if order else b
        scale = seen.reshape(groups, 1, rank[0], *b.shape[1:])
        return [*order, (first.unflatten(0, (groups, -1)) / scale).flatten(0, 1), last / a]

    def _products(self, weight: Tensor, groups: int, metric: Metric) -> list[Tensor]:
        F, C, kh, kw = weight.shape
        dim = F // groups
        orders = [torch.arange(C)]
        if self._sorts and 1 < groups < C:
            channels = scaled_channels(weight, metric)
            found = [subspace_partition(channels, start, groups, dim) for start in self._starts(weight, groups, metric)]
            ranked = sorted(range(len(found)), key=lambda i: found[i][1])[:COMPARED]
            orders = [found[i][0] for i in ranked]
        matrix, dims = weight.flatten(1), [dim] * groups
        fits = [fit_products(matrix, [*inputs_of(order, groups, kh * kw)], dims, metric, 1) for order in orders]
        i = min(range(len(fits)), key=lambda i: fits[i].error)
        order, best = orders[i], fits[i]
        if metric.sigma is not None and groups > 1:
            best = fit_products(matrix, [*inputs_of(order, groups, kh * kw)], dims, metric, SWEEPS)
        first = torch.cat(best.inputs).reshape(F, C // groups, kh, kw)
        last = torch.cat(best.outputs, 1).reshape(F, F, 1, 1)
        return [order, first, last] if self._sorts and 1 < groups < C else [first, last]

    def _blocks(self, weight: Tensor, groups: int, metric: Metric) -> list[Tensor]:
        F, C, kh, kw = weight.shape
        shape = (F, C // groups, kh, kw)
        if not self._sorts or groups == 1:
            parts = torch.arange(C * kh * kw).chunk(groups)
            fits = [regression(weight.flatten(1), places, metric)[0] for places in parts]
            return [torch.cat([k.chunk(groups)[i] for i, k in enumerate(fits)]).reshape(shape)]
        orders = [torch.arange(C)]
        if groups < C:
            energy = scaled_channels(weight, metric).square().sum(2)
            orders += [block_partition(energy, start, groups) for start in self._starts(weight, groups, metric)]
            orders += [block_partition(energy, balanced_kmeans(energy, groups, restarts=2).order, groups)]
        best: Blocks = min((fit_blocks(weight, order, groups, metric) for order in orders), key=lambda b: b.error)
        kernels = [best.kernels.reshape(shape), torch.argsort(best.filters)]
        return [best.order, *kernels] if groups < C else kernels

    def _starts(self, weight: Tensor, groups: int, metric: Metric) -> list[Int[Tensor, " c"]]:
        """Orders of the channels to start from: as they are, clusters of the covariance, and random ones."""
        C = weight.shape[1]
        starts = [torch.arange(C)]
        if metric.sigma is not None and 1 < groups < C:
            points = psd_root(metric.sigma.diagonal_blocks(C), 1e-12)
            dim = math.ceil(C / groups / 3)
            clusters = balanced_kmeans(points, groups, subspace=dim, restarts=2, seed=self.settings["seed"])
            starts.append(clusters.order)
        generator = torch.Generator().manual_seed(self.settings["seed"])
        count = self.settings["restarts"] * (4 if weight.numel() <= SMALL_ENTRIES else 1)
        return starts + [torch.randperm(C, generator=generator) for _ in range(count)]


def _count(spec: ConvSpec, rank: Rank) -> int:
    """The number of groups; UsageError where they are not equal."""
    C, F = spec.in_channels, spec.out_channels
    groups = C // rank[0]
    if rank[0] * groups != C or F % groups:
        raise UsageError(f"root: {C} channels and {F} filters do not make equal groups of {rank[0]} channels")
    return groups


def _numbers(text: str) -> tuple[int, ...]:
    """`8/4/2` as numbers; UsageError for anything else that is not empty."""
    try:
        numbers = tuple(int(part) for part in text.split("/")) if text else ()
    except ValueError:
        numbers = (0,)
    if any(n < 1 for n in numbers):
        raise UsageError(f"option groups of method root is a number from 1 on, or several as 8/4/2/1, not '{text}'")
    return numbers
