"""The second moment of the inputs of a layer: as a matrix, or as the samples that it is made of."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from cnncompress.chains.spec import ConvSpec
from cnncompress.errors import CompressError
from cnncompress.maths.linalg import mean_eigenvalue, oas_shrinkage
from cnncompress.metrics.statistics import LayerStatistics


@dataclass(frozen=True)
class Moment:
    """A symmetric positive definite matrix Σ [n, n]: `dense`, or samplesᵀ·samples plus a multiple of the identity."""

    dense: Float[Tensor, "n n"] | None = None
    samples: Float[Tensor, "rows n"] | None = None
    ridge: float = 0.0

    def times(self, rows: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
        """`rows · Σ` for rows [m, n]."""
        if self.dense is not None:
            return rows @ self.dense.to(rows.dtype)
        if self.samples is None:
            return rows
        samples = self.samples.to(rows.dtype)
        return (rows @ samples.mT) @ samples + self.ridge * rows

    def gram(self, first: Float[Tensor, "m n"], second: Float[Tensor, "l n"] | None = None) -> Float64[Tensor, "m l"]:
        """`first · Σ · secondᵀ` (second is first by default) in float64, products in the precision of the rows."""
        if self.dense is None and self.samples is not None:
            a = first @ self.samples.to(first.dtype).mT
            b = a if second is None else second @ self.samples.to(first.dtype).mT
            return (a @ b.mT).double() + self.ridge * (first @ (first if second is None else second).mT).double()
        return (self.times(first) @ (first if second is None else second).mT).double()

    def energy(self, rows: Float[Tensor, "m n"]) -> Float64[Tensor, ""]:
        """tr(rows · Σ · rowsᵀ), without the matrix."""
        if self.dense is not None:
            return (self.times(rows) * rows).sum(dtype=torch.float64)
        if self.samples is None:
            return square_sum(rows)
        return square_sum(rows @ self.samples.to(rows.dtype).mT) + self.ridge * square_sum(rows)

    def halfway(self) -> Moment:
        """The moment with its mean eigenvalue added to every eigenvalue: Σ and the identity at equal scale."""
        if self.dense is not None:
            dense = self.dense.double()
            return Moment(dense + mean_eigenvalue(dense) * torch.eye(len(dense), dtype=dense.dtype))
        if self.samples is None:
            return self
        level = self.ridge + float(self.samples.double().square().sum()) / self.samples.shape[1]
        return replace(self, ridge=self.ridge + (level or 1.0))

    def reordered(self, index: Int[Tensor, " n"]) -> Moment:
        """The moment of the inputs in the order `index` [n]."""
        if self.dense is not None:
            return Moment(self.dense[index][:, index])
        return self if self.samples is None else Moment(samples=self.samples[:, index], ridge=self.ridge)

    def diagonal_blocks(self, channels: int) -> Float64[Tensor, "{channels} {channels}"]:
        """Σ averaged over kernel positions, [channels, channels], for n = channels · positions in that order."""
        if self.dense is not None:
            blocks = self.dense.unflatten(0, (channels, -1)).unflatten(2, (channels, -1))
            return torch.einsum("cpdp->cd", blocks).double() / blocks.shape[1]
        if self.samples is None:
            return torch.eye(channels, dtype=torch.float64)
        rows = self.samples.unflatten(1, (channels, -1))
        eye = torch.eye(channels, dtype=torch.float64)
        return torch.einsum("rcp,rdp->cd", rows, rows).double() / rows.shape[2] + self.ridge * eye


def square_sum(rows: Float[Tensor, "m n"]) -> Float64[Tensor, ""]:
    """Σ of the squares in float64, in parts: a wide layer is large enough once."""
    return torch.stack([part.double().square().sum() for part in rows.split(256)]).sum()


def input_moment(spec: ConvSpec, statistics: LayerStatistics, group: int) -> Moment:
    """The centred second moment of one group's input patches, shrunk to a multiple of the identity (`oas_shrinkage`).

    Raises CompressError where the statistics hold none.
    """
    n = spec.weights // spec.out_channels
    if statistics.moment is not None:
        dense = statistics.moment[group].double()
        share = oas_shrinkage(dense, statistics.counted)
        level = mean_eigenvalue(dense)
        return Moment(dense * (1 - share) + share * level * torch.eye(n, dtype=torch.float64))
    if statistics.samples is None or not len(statistics.samples):
        raise CompressError("the statistics hold no second moment of the inputs; collect them for this metric")
    samples = statistics.samples[:, group * n : (group + 1) * n]
    level = float(samples.double().square().mean()) or 1.0
    share = oas_shrinkage(samples @ samples.mT / len(samples), len(samples), n)
    return Moment(samples=samples * ((1 - share) / len(samples)) ** 0.5, ridge=share * level)
