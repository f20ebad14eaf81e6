"""The base class of decompositions: ranks, groups, composition of chains."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from cnncompress.chains.spec import Chain, ConvSpec, Rank
from cnncompress.decompositions.refine import Bounds, error_of, nested_errors
from cnncompress.decompositions.refine import refine as improve
from cnncompress.decompositions.scratch import he_kernels
from cnncompress.decompositions.whitening import whiten
from cnncompress.errors import UnsupportedLayerError, UsageError
from cnncompress.maths.linalg import singular_values
from cnncompress.metrics import FROBENIUS, Metric

DEPTHWISE = "depthwise: a single input channel a group leaves nothing to share"

REGISTRY: dict[str, type[Decomposition]] = {}
SEEDS = 2**63  # as many as torch and numpy take


def register(cls: type[Decomposition]) -> type[Decomposition]:
    """Class decorator: make a decomposition known by its name."""
    REGISTRY[cls.name] = cls
    return cls


class Decomposition(ABC):
    """A way to write a layer as a chain of plain layers.

    A subclass describes one group of a layer (`group_*`, all with `spec.groups == 1`); grouped convolutions are
    decomposed group by group, each with its own kernels, and run as grouped stages. Ranks count per group.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    rank_names: ClassVar[tuple[str, ...]] = ("K",)
    options: ClassVar[dict[str, Any]] = {}
    counts: ClassVar[tuple[str, ...]] = ()  # the options that are at least 1
    sizing: ClassVar[tuple[str, ...]] = ()  # the options that say how much is kept, as a rank does
    exact: ClassVar[bool] = True  # the full rank reproduces every weight
    whitens: ClassVar[bool] = False  # `group_factorize` takes the metric into account itself
    sliced: ClassVar[bool] = False  # the first K channels between its two stages are the chain of rank K
    any_width: ClassVar[bool] = False  # a rank has a chain for every number of channels on both sides
    smooth: ClassVar[bool] = False  # errors at many ranks take no longer than at a few

    def __init__(self, **options: Any) -> None:
        self.settings = {**self.options, **options}
        for option in self.counts:
            if self.settings[option] < 1:
                raise UsageError(f"option {option} of method {self.name} is at least 1, not {self.settings[option]}")
        if not 0 <= self.settings.get("seed", 0) < SEEDS:
            raise UsageError(f"option seed of method {self.name} is in 0..2^63−1, not {self.settings['seed']}")

    # --- to be written by a method ---

    def group_refuse(self, spec: ConvSpec) -> str | None:
        """Why this geometry cannot take the method, or None."""
        return None

    @abstractmethod
    def group_full_rank(self, spec: ConvSpec) -> Rank:
        """The smallest rank at which every weight of this geometry is reproduced exactly."""

    @abstractmethod
    def group_stages(self, spec: ConvSpec, rank: Rank) -> Chain:
        """The chain of one group; only its last stage carries the bias."""

    @abstractmethod
    def group_factorize(self, weight: Tensor, spec: ConvSpec, rank: Rank, metric: Metric) -> list[Tensor]:
        """One tensor a stage of `group_stages`, for `weight` [F, C, kh, kw]: a kernel, or a permutation's index.

        Unless the method `whitens`, the metric is Frobenius here and the weight is already scaled for any other.
        """

    def group_scratch(self, spec: ConvSpec, rank: Rank, generator: torch.Generator) -> list[Tensor]:
        """Random kernels of one group to train from, one tensor a stage of `group_stages`: those of He et al. 2015."""
        return he_kernels(self.group_stages(spec, rank), generator)

    def group_search(
        self, starts: list[list[Tensor]], weight: Tensor, spec: ConvSpec, metric: Metric
    ) -> list[list[Tensor]]:
        """Further kernels to refine beside those of the starts, found by way of a metric other than Frobenius."""
        return []

    def fitted_in(self, metric: Metric) -> Metric:
        """The metric that the kernels are fitted in, by default the one asked for.

        A method may give another one, in which its fits do less to the outputs.
        """
        return metric

    def bounds(self, weight: Tensor) -> Bounds | None:
        """What keeps the kernels for `weight` [F, C, kh, kw] small while they are refined; None where they are."""
        return None

    def matricization(self, weight: Tensor) -> Tensor | None:
        """The matrix whose singular values tell the error at each rank, or None where there is none."""
        return None

    def optimal(self, metric: Metric) -> bool:
        """True where `group_factorize` gives the smallest error of its rank, so that nothing can refine it."""
        return False

    def group_errors(self, weight: Tensor, spec: ConvSpec, ranks: Sequence[Rank], metric: Metric) -> Tensor:
        """The metric's squared error of one group at each of `ranks`, float64 [ranks]."""
        if self.sliced and metric.separable:
            highest = max(ranks)
            kernels = [k.double() for k in self.group_factorize(weight, spec, highest, metric)]
            return nested_errors(self.group_stages(spec, highest), kernels, weight, metric, [r[0] for r in ranks])
        errors = []
        for rank in ranks:
            chain = self.group_stages(spec, rank)
            errors.append(error_of(chain, self._factorize_group(weight, spec, rank, metric, 1), weight, metric))
        return torch.tensor(errors, dtype=torch.float64)

    def fixed_rank(self, spec: ConvSpec) -> Rank | None:
        """The rank that the options ask for on a layer that the method takes; None where they leave it open."""
        return None

    @property
    def graded(self) -> bool:
        """True where its options mean another thing at another depth of the network; `at_depth` tells what."""
        return False

    def at_depth(self, resolution: int, resolutions: int) -> Decomposition:
        """This method for layers at one of so many resolutions of outputs, 0 for the highest of those it takes."""
        return self

    @property
    def normalises(self) -> bool:
        """True where its chains train with a normalisation at their end; `not_normalising` is the same without."""
        return False

    def not_normalising(self) -> Decomposition:
        """This method for layers that the network normalises after."""
        return self

    def quick(self) -> Decomposition:
        """This method with shorter fits, to tell ranks apart; itself where its fits are short."""
        return self

    # --- the same for all ---

    def refuse(self, spec: ConvSpec) -> str | None:
        """Why a layer cannot take this method (a sentence), or None."""
        if spec.depthwise:
            return DEPTHWISE
        return self.group_refuse(spec.group())

    def full_rank(self, spec: ConvSpec) -> Rank:
        """The rank (of each group) from which on the layer is reproduced exactly."""
        return self.group_full_rank(spec.group())

    def rank(self, spec: ConvSpec, request: int | float | Sequence[int]) -> Rank:
        """The rank tuple for a request: the same number for every component, or a fraction of the full rank.

        Raises UsageError where the request is out of range for this layer.
        """
        full = self.full_rank(spec)
        if isinstance(request, float):
            if not 0 < request <= 1:
                raise UsageError(f"rank fraction {request} is not in (0, 1]; give e.g. --rank 0.25, or a whole number")
            return tuple(max(1, math.floor(request * f + 0.5)) for f in full)
        rank = (request,) * len(full) if isinstance(request, int) else tuple(request)
        if len(rank) != len(full):
            raise UsageError(f"{self.name} takes {len(full)} ranks ({', '.join(self.rank_names)}), not {len(rank)}")
        if min(rank) < 1:
            raise UsageError(f"rank {min(rank)} is not positive; the smallest rank is 1")
        if isinstance(request, int):
            return tuple(min(r, f) for r, f in zip(rank, full, strict=True)) if request <= max(full) else rank
        return rank

    def stages(self, spec: ConvSpec, rank: Rank) -> Chain:
        """The chain of plain layers that replaces a layer at this rank."""
        groups = spec.groups
        chain = self.group_stages(spec.group(), rank)
        if groups == 1:
            return chain
        try:
            return tuple(stage.in_groups(groups) for stage in chain)
        except UnsupportedLayerError as error:
            raise UnsupportedLayerError(f"{self.name} cannot express {spec}: {error}") from None

    def factorize(
        self,
        weight: Tensor,
        spec: ConvSpec,
        rank: Rank,
        metrics: Sequence[Metric] | None = None,
        refine: int = 1,
        start: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """One tensor a stage of `stages(spec, rank)` that together approximate `weight` [F, C/g, kh, kw].

        `metrics` are those of the groups, by default Frobenius. `refine` 0 is the method's own procedure, 1 refits the
        last stage by least squares, each further one improves all stages in turn; none of them raises the error.
        `start`, what this gave for a weight and metric much like these, is refined instead of a new procedure's result,
        unless that takes no search.
        """
        parts, metrics = group_weights(weight, spec), metrics or [FROBENIUS] * spec.groups
        starts = [None if start is None else [k.chunk(spec.groups)[g] for k in start] for g in range(spec.groups)]
        by_group = [
            self._factorize_group(part, spec.group(), rank, metric, refine, known)
            for part, metric, known in zip(parts, metrics, starts, strict=True)
        ]
        return [torch.cat(kernels) for kernels in zip(*by_group, strict=True)]

    def scratch(self, spec: ConvSpec, rank: Rank, generator: torch.Generator) -> list[Tensor]:
        """Random kernels to train from, as the method's paper has them; one tensor a stage of `stages(spec, rank)`."""
        by_group = [self.group_scratch(spec.group(), rank, generator) for _ in range(spec.groups)]
        return [torch.cat(kernels) for kernels in zip(*by_group, strict=True)]

    def _factorize_group(
        self,
        weight: Tensor,
        spec: ConvSpec,
        rank: Rank,
        metric: Metric,
        sweeps: int,
        start: list[Tensor] | None = None,
    ) -> list[Tensor]:
        """The kernels of one group.

        Where scaling the weight only comes near to the metric, the fit without it is refined too, and so is what the
        method finds by a search of its own: the best one wins.
        """
        metric = self.fitted_in(metric)
        chain, plain = self.group_stages(spec, rank), metric.plain
        weight = weight if self.whitens else weight.double()
        bounds = self.bounds(weight)
        if start is not None and not self.sliced:
            return improve(chain, start, weight, metric, sweeps, bounds)
        if self.whitens or plain:
            kernels = self.group_factorize(weight, spec, rank, metric)
        else:
            scaled, undo = whiten(weight, chain, metric)
            kernels = undo(self.group_factorize(scaled, spec, rank, FROBENIUS))
        if self.optimal(metric):
            return kernels
        if not sweeps or plain or (self.whitens and metric.separable):
            return improve(chain, kernels, weight, metric, sweeps, bounds)
        starts = [kernels, self.group_factorize(weight, spec, rank, FROBENIUS)]
        starts += self.group_search(starts, weight, spec, metric)
        improved = [improve(chain, start, weight, metric, sweeps, bounds) for start in starts]
        return min(improved, key=lambda candidate: error_of(chain, candidate, weight, metric))

    def errors(
        self, weight: Tensor, spec: ConvSpec, ranks: Sequence[Rank], metrics: Sequence[Metric] | None = None
    ) -> Tensor:
        """The metric's squared error of `factorize` with `refine` 1 at each of `ranks`, float64 [ranks].

        A method whose factors at a small rank are the first ones at a large rank is factorized only once.
        """
        parts = zip(group_weights(weight, spec), metrics or [FROBENIUS] * spec.groups, strict=True)
        by_group = [self.group_errors(part.double(), spec.group(), ranks, metric) for part, metric in parts]
        return torch.stack(by_group).sum(0)

    def spectrum(self, weight: Tensor, spec: ConvSpec) -> Tensor | None:
        """Singular values that tell the energy kept at each rank, [groups, full rank]; None where there are none."""
        values = []
        for part in group_weights(weight, spec):
            matrix = self.matricization(part)
            if matrix is None:
                return None
            values.append(singular_values(matrix))
        return torch.stack(values)


def refuse_matrix(spec: ConvSpec) -> str | None:
    """Why a method with a spatial stage between two pointwise ones cannot take a layer that is one matrix, or None."""
    if spec.linear:
        return "a Linear takes the method svd"
    return "a 1×1 convolution takes the method channel-svd" if spec.pointwise else None


def group_weights(weight: Tensor, spec: ConvSpec) -> tuple[Tensor, ...]:
    """The weight [F/g, C/g, kh, kw] of each group; a Linear's [F, C] is seen as [F, C, 1, 1]."""
    weight = weight.detach()
    weight = weight if weight.dtype == torch.float64 else weight.float()
    return weight.reshape(spec.weight_shape).chunk(spec.groups)
