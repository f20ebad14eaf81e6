"""The quadratic forms in which an approximation error is measured.

A metric belongs to one group of a layer. An error Δ is seen as a matrix [F, n] with n = C·kh·kw inputs a position, in
the order of `weight.flatten(1)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from cnncompress.chains.spec import ConvSpec
from cnncompress.errors import CompressError, UsageError, nearest
from cnncompress.maths.linalg import mean_eigenvalue, oas_shrinkage, psd_root
from cnncompress.metrics.statistics import LayerStatistics

FLOOR = 0.5  # what Denton et al. add to the sensitivities after scaling, so that none vanishes


@dataclass(frozen=True)
class Moment:
    """A symmetric positive definite matrix Σ [n, n]: `dense`, or samplesᵀ·samples plus a multiple of the identity."""

    dense: Tensor | None = None
    samples: Tensor | None = None
    ridge: float = 0.0

    def times(self, rows: Tensor) -> Tensor:
        """`rows · Σ` for rows [m, n]."""
        if self.dense is not None:
            return rows @ self.dense.to(rows.dtype)
        if self.samples is None:
            return rows
        samples = self.samples.to(rows.dtype)
        return (rows @ samples.mT) @ samples + self.ridge * rows

    def gram(self, first: Tensor, second: Tensor | None = None) -> Tensor:
        """`first · Σ · secondᵀ` (second is first by default) in float64, products in the precision of the rows."""
        if self.dense is None and self.samples is not None:
            a = first @ self.samples.to(first.dtype).mT
            b = a if second is None else second @ self.samples.to(first.dtype).mT
            return (a @ b.mT).double() + self.ridge * (first @ (first if second is None else second).mT).double()
        return (self.times(first) @ (first if second is None else second).mT).double()

    def energy(self, rows: Tensor) -> Tensor:
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

    def reordered(self, index: Tensor) -> Moment:
        """The moment of the inputs in the order `index` [n]."""
        if self.dense is not None:
            return Moment(self.dense[index][:, index])
        return self if self.samples is None else Moment(samples=self.samples[:, index], ridge=self.ridge)

    def diagonal_blocks(self, channels: int) -> Tensor:
        """Σ averaged over kernel positions, [channels, channels], for n = channels · positions in that order."""
        if self.dense is not None:
            blocks = self.dense.unflatten(0, (channels, -1)).unflatten(2, (channels, -1))
            return torch.einsum("cpdp->cd", blocks).double() / blocks.shape[1]
        if self.samples is None:
            return torch.eye(channels, dtype=torch.float64)
        rows = self.samples.unflatten(1, (channels, -1))
        eye = torch.eye(channels, dtype=torch.float64)
        return torch.einsum("rcp,rdp->cd", rows, rows).double() / rows.shape[2] + self.ridge * eye


@dataclass(frozen=True)
class Metric:
    """The squared length of an error: ‖Δ‖²_F, tr(Γ Δ Σ Δᵀ) or Σ_p (α_p Δ_p)², by what is there.

    `sigma` is Σ [n, n], `gamma` Γ [F, F], `alpha` [F, n]. `mean` [n] is the mean input: what an error does to the mean
    output, Δ · mean, is taken back by the bias and does not count.
    """

    name: str = "frobenius"
    sigma: Moment | None = None
    gamma: Tensor | None = None
    alpha: Tensor | None = None
    mean: Tensor | None = None

    @cached_property
    def left_root(self) -> Tensor | None:
        """Lower triangular L [F, F] with L·Lᵀ = Γ, or None without Γ."""
        return None if self.gamma is None else psd_root(self.gamma.double())

    def halfway(self) -> Metric:
        """The sum of the metric and, at equal scale, the one with a Frobenius norm in the place of Σ."""
        return self if self.sigma is None else replace(self, sigma=self.sigma.halfway())

    def reordered(self, index: Tensor) -> Metric:
        """The metric of a layer whose inputs come in the order `index` [n]."""
        sigma = None if self.sigma is None else self.sigma.reordered(index)
        alpha, mean = (None if t is None else t[..., index] for t in (self.alpha, self.mean))
        return replace(self, sigma=sigma, alpha=alpha, mean=mean)

    def apply(self, delta: Tensor) -> Tensor:
        """Half the gradient of the form at Δ [F, n]."""
        if self.alpha is not None:
            return self.alpha.square().to(delta.dtype) * delta
        out = delta if self.sigma is None else self.sigma.times(delta)
        return out if self.gamma is None else self.gamma.to(out.dtype) @ out

    def gram(self, first: Tensor, second: Tensor | None = None) -> Tensor:
        """`first · Σ · secondᵀ` for rows [m, n], in float64."""
        if self.sigma is not None:
            return self.sigma.gram(first, second)
        return (first @ (first if second is None else second).mT).double()

    def squared_error(self, delta: Tensor) -> float:
        """The form at an error [F, ...]."""
        delta = delta.flatten(1)
        if self.alpha is not None:
            delta = self.alpha.to(delta.dtype) * delta
        if self.sigma is None or self.alpha is not None:
            return float(square_sum(delta))
        value = self.sigma.energy(delta) if self.gamma is None else (self.gamma.double() * self.sigma.gram(delta)).sum()
        return float(value.clamp_min(0))


def square_sum(rows: Tensor) -> Tensor:
    """Σ of the squares in float64, in parts: a wide layer is large enough once."""
    return torch.stack([part.double().square().sum() for part in rows.split(256)]).sum()


FROBENIUS = Metric()


def _sigma(statistics: LayerStatistics, group: int, spec: ConvSpec) -> Moment:
    """The shrunk second moment of one group's inputs."""
    n = spec.weights // spec.out_channels
    if statistics.moment is not None:
        dense = statistics.moment[group].double()
        share = oas_shrinkage(dense, statistics.rows)
        level = mean_eigenvalue(dense)
        return Moment(dense * (1 - share) + share * level * torch.eye(n, dtype=torch.float64))
    if statistics.samples is None or not len(statistics.samples):
        raise CompressError("the statistics hold no second moment of the inputs; collect them for this metric")
    samples = statistics.samples[:, group * n : (group + 1) * n]
    level = float(samples.double().square().mean()) or 1.0
    share = oas_shrinkage(samples @ samples.mT / len(samples), len(samples), n)
    return Moment(samples=samples * ((1 - share) / len(samples)) ** 0.5, ridge=share * level)


def data_covariance(spec: ConvSpec, statistics: LayerStatistics) -> list[Metric]:
    """tr(Δ Σ Δᵀ), Σ the centred second moment of the input patches (Denton et al. 2014, eq. 3)."""
    return [Metric("data-covariance", _sigma(statistics, g, spec), mean=statistics.mean[g]) for g in range(spec.groups)]


def kronecker(spec: ConvSpec, statistics: LayerStatistics) -> list[Metric]:
    """tr(Γ Δ Σ Δᵀ), Γ the second moment of the loss gradient at the output, summed over positions.

    Half of it estimates the rise of the loss in nats per image (Martens and Grosse 2015, with the true Fisher).
    """
    if statistics.gradient is None:
        raise CompressError("the statistics hold no output gradients; collect them for the metric kronecker")
    metrics = []
    width = spec.out_channels // spec.groups
    for g in range(spec.groups):
        rows = slice(g * width, (g + 1) * width)
        gamma = statistics.gradient[rows, rows].double()
        level = float(gamma.diagonal().mean()) or 1e-30  # no gradient at all: no rise of the loss either
        share = max(oas_shrinkage(gamma, statistics.images), 1e-4)
        gamma = gamma * (1 - share) + share * level * torch.eye(width, dtype=torch.float64)
        metrics.append(Metric("kronecker", _sigma(statistics, g, spec), gamma, mean=statistics.mean[g]))
    return metrics


def mahalanobis(spec: ConvSpec, statistics: LayerStatistics) -> list[Metric]:
    """Σ_p (α_p Δ_p)², α the root mean square gradient toward the most probable wrong classes (Denton, eq. 1, 2).

    α is scaled to a mean of 1 over the layer and `FLOOR` is added, as the authors do.
    """
    if statistics.sensitivity is None:
        raise CompressError("the statistics hold no gradients of the weights; collect them for the metric mahalanobis")
    root = statistics.sensitivity.double().sqrt().flatten(1)
    alpha = root / (float(root.mean()) or 1.0) + FLOOR
    return [Metric("mahalanobis", alpha=part) for part in alpha.chunk(spec.groups)]


# name -> the metric of each group of a layer, from the layer's geometry and statistics
METRICS: dict[str, Callable[[ConvSpec, LayerStatistics], list[Metric]]] = {
    "frobenius": lambda spec, statistics: [FROBENIUS] * spec.groups,
    "data-covariance": data_covariance,
    "kronecker": kronecker,
    "mahalanobis": mahalanobis,
}
CENTRED = {"data-covariance", "kronecker"}  # the bias takes back what an error does to the mean output


def check_metric(name: str) -> None:
    """UsageError for a metric that is not registered."""
    if name not in METRICS:
        raise UsageError(f"unknown metric '{name}' (known: {', '.join(METRICS)}){nearest(name, METRICS)}")


def layer_metrics(name: str, spec: ConvSpec, statistics: LayerStatistics | None) -> list[Metric]:
    """The metric of each group of a layer; UsageError where it needs statistics and there are none."""
    check_metric(name)
    if name == "frobenius":
        return [FROBENIUS] * spec.groups
    if statistics is None:
        raise UsageError(f"metric {name} needs calibration images; give --data, or pass statistics=")
    return METRICS[name](spec, statistics)


def squared_error(metrics: Sequence[Metric], delta: Tensor) -> float:
    """The form at a layer's error [F, C/g, kh, kw], summed over its groups."""
    return sum(m.squared_error(part) for m, part in zip(metrics, delta.chunk(len(metrics)), strict=True))


def relative_error(metrics: Sequence[Metric], weight: Tensor, approximation: Tensor) -> float:
    """√(form(W − W̃) / form(W)) of a layer; 0 where both vanish."""
    weight, approximation = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (weight, approximation))
    total, error = squared_error(metrics, weight), squared_error(metrics, weight - approximation)
    return (error / total) ** 0.5 if total > 0 else 0.0 if error == 0 else float("inf")
