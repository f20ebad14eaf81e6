"""What a decomposition is, and what all of them share: ranks, groups, composition of chains."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from cnncompress.errors import UnsupportedLayerError, UsageError, nearest
from cnncompress.linalg import singular_values
from cnncompress.metrics import FROBENIUS, Metric
from cnncompress.spec import Chain, ConvSpec, Permutation, Rank, convolutions

REGISTRY: dict[str, type[Decomposition]] = {}


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

    def __init__(self, **options: Any) -> None:
        self.settings = {**self.options, **options}

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
        """One tensor a stage of `group_stages`, for `weight` [F, C, kh, kw]: a kernel, or a permutation's index."""

    def matricization(self, weight: Tensor) -> Tensor | None:
        """The matrix whose singular values tell the error at each rank, or None where there is none."""
        return None

    # --- the same for all ---

    def refuse(self, spec: ConvSpec) -> str | None:
        """Why a layer cannot take this method (a sentence), or None."""
        if spec.depthwise:
            return "depthwise: a single input channel a group leaves nothing to share"
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
        if any(isinstance(stage, Permutation) for stage in chain):
            raise UnsupportedLayerError(f"{self.name} cannot express {spec}: a permutation across groups")
        return tuple(
            stage.replace(
                in_channels=stage.in_channels * groups,
                out_channels=stage.out_channels * groups,
                groups=stage.groups * groups,
            )
            for stage in convolutions(chain)
        )

    def factorize(self, weight: Tensor, spec: ConvSpec, rank: Rank, metric: Metric = FROBENIUS) -> list[Tensor]:
        """One tensor a stage of `stages(spec, rank)` that together approximate `weight` [F, C/g, kh, kw]."""
        parts = [self.group_factorize(part, spec.group(), rank, metric) for part in group_weights(weight, spec)]
        return [torch.cat(kernels) for kernels in zip(*parts, strict=True)]

    def spectrum(self, weight: Tensor, spec: ConvSpec) -> Tensor | None:
        """Singular values that tell the energy kept at each rank, [groups, full rank]; None where there are none."""
        values = []
        for part in group_weights(weight, spec):
            matrix = self.matricization(part)
            if matrix is None:
                return None
            values.append(singular_values(matrix))
        return torch.stack(values)


def group_weights(weight: Tensor, spec: ConvSpec) -> tuple[Tensor, ...]:
    """The weight [F/g, C/g, kh, kw] of each group; a Linear's [F, C] is seen as [F, C, 1, 1]."""
    weight = weight.detach()
    weight = weight if weight.dtype == torch.float64 else weight.float()
    return weight.reshape(spec.weight_shape).chunk(spec.groups)


def dense_kernel(kernel: Tensor, groups: int) -> Tensor:
    """A grouped kernel [F, C/g, kh, kw] as the block-diagonal kernel [F, C, kh, kw] of one group."""
    if groups == 1:
        return kernel
    F, C, kh, kw = kernel.shape
    dense = kernel.new_zeros(groups, F // groups, groups, C, kh, kw)
    index = torch.arange(groups)
    dense[index, :, index] = kernel.reshape(groups, F // groups, C, kh, kw)
    return dense.reshape(F, groups * C, kh, kw)


def compose(chain: Chain, kernels: Sequence[Tensor]) -> Tensor:
    """The one kernel [F, C, kh, kw] (one group) that does what the chain does.

    Raises UnsupportedLayerError if two stages both extend along the same axis: their product would be larger than a
    layer of the vocabulary.
    """
    total: Tensor | None = None
    for stage, kernel in zip(chain, kernels, strict=True):
        if isinstance(stage, Permutation):
            if total is None:
                total = torch.eye(stage.channels, dtype=torch.float64, device=kernel.device)[:, :, None, None]
            total = total[kernel]
            continue
        kernel = dense_kernel(kernel, stage.groups)
        total = kernel if total is None else _compose_two(total, kernel)
    if total is None:
        raise UnsupportedLayerError("an empty chain has no kernel")
    return total


def _compose_two(first: Tensor, second: Tensor) -> Tensor:
    if (first.shape[2] > 1 and second.shape[2] > 1) or (first.shape[3] > 1 and second.shape[3] > 1):
        raise UnsupportedLayerError("two stages extend along the same axis; no kernel of this size does the same")
    product = torch.einsum("fmij,mckl->fcikjl", second, first.to(second.dtype))
    F, C, i, k, j, l = product.shape  # noqa: E741
    return product.reshape(F, C, i * k, j * l)


def extract_groups(dense: Tensor, groups: int) -> Tensor:
    """The inverse of `dense_kernel`: the diagonal blocks of [F, C, kh, kw] as [F, C/g, kh, kw]."""
    return torch.cat([part.chunk(groups, dim=1)[i] for i, part in enumerate(dense.chunk(groups))])


def parse_options(cls: type[Decomposition], text: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Read `k=v,...` of `--method NAME:k=v,...` into (options, ranks by component); UsageError for anything else."""
    options: dict[str, Any] = {}
    ranks: dict[str, int] = {}
    known = [*cls.options, *cls.rank_names]
    for item in filter(None, text.split(",")):
        key, _, value = item.partition("=")
        if key not in known:
            listed = ", ".join(known)
            raise UsageError(f"method {cls.name} has no option '{key}' (it has: {listed}){nearest(key, known)}")
        default = cls.options.get(key, 0)
        try:
            parsed = type(default)(value)
        except ValueError:
            kind = "a whole number" if isinstance(default, int) else "a number"
            raise UsageError(f"option {key} of method {cls.name} takes {kind}, not '{value}'") from None
        if key in cls.rank_names:
            if parsed < 1:
                raise UsageError(f"option {key} of method {cls.name} is a rank, at least 1, not {value}")
            ranks[key] = parsed
        else:
            options[key] = parsed
    return options, ranks
