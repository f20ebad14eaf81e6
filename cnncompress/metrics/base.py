"""The base class of metrics: the quadratic form in which the error of an approximation is measured.

A metric belongs to one group of a layer. An error Δ is seen as a matrix [F, n] with n = C·kh·kw inputs a position, in
the order of `weight.flatten(1)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from cnncompress.chains.spec import ConvSpec
from cnncompress.maths.linalg import psd_root, rank_one_scaling
from cnncompress.metrics.moment import Moment, square_sum
from cnncompress.metrics.statistics import LayerStatistics

Statistic = Literal["moment", "gradient", "sensitivity"]  # fields of `LayerStatistics`
LABELLED: tuple[Statistic, ...] = ("sensitivity",)  # what only labelled images tell

REGISTRY: dict[str, type[Metric]] = {}


def register(cls: type[Metric]) -> type[Metric]:
    """Class decorator: make a metric known by its name."""
    REGISTRY[cls.name] = cls
    return cls


@dataclass(frozen=True)
class Metric:
    """The squared length of an error: ‖Δ‖²_F, tr(Γ Δ Σ Δᵀ) or Σ_p (α_p Δ_p)², by what is there.

    `sigma` is Σ [n, n], `gamma` Γ [F, F], `alpha` [F, n]. `mean` [n] is the mean input: what an error does to the mean
    output, Δ · mean, is taken back by the bias and does not count.

    A subclass says what it `needs` from images and makes the metrics of a layer's groups from that (`of`). It is
    `centred` where it gives them the mean input. It is in `nats` where half of the form estimates the rise of the loss
    in nats an image.
    """

    name: ClassVar[str] = ""
    source: ClassVar[str] = ""
    needs: ClassVar[tuple[Statistic, ...]] = ()
    centred: ClassVar[bool] = False
    nats: ClassVar[bool] = False

    sigma: Moment | None = None
    gamma: Float[Tensor, "f f"] | None = None
    alpha: Float[Tensor, "f n"] | None = None
    mean: Float[Tensor, " n"] | None = None

    # --- to be written by a metric ---

    @classmethod
    def of(cls, spec: ConvSpec, statistics: LayerStatistics) -> list[Metric]:
        """The metric of each group of a layer; CompressError where the statistics lack what it needs."""
        raise NotImplementedError(f"the metric {cls.name} does not say what it is for a layer")

    # --- the same for all ---

    @classmethod
    def labelled(cls) -> bool:
        """True where it needs the labels of the images."""
        return any(statistic in LABELLED for statistic in cls.needs)

    # --- what it offers a method ---

    @property
    def separable(self) -> bool:
        """True where the form is tr(Γ Δ Σ Δᵀ), with the identity for what is None: roots of Γ and Σ whiten it."""
        return self.alpha is None

    @property
    def plain(self) -> bool:
        """True for the Frobenius norm."""
        return self.separable and self.sigma is None and self.gamma is None

    def whitener(
        self, filters: int, channels: int, dense: tuple[bool, bool] = (True, True)
    ) -> tuple[Float64[Tensor, "{filters} {filters}"], Float64[Tensor, "{channels} {channels}"]]:
        """L [F, F] and R [C, C] with ‖Lᵀ · W · R‖²_F near the form at W [F, C, kh, kw], L and R on its first two sides.

        Exact where Γ and a moment of the channels, the same at all kernel positions, are all there is. `dense` tells
        for L and R whether they may mix filters and channels, or are diagonal.
        """
        if self.alpha is not None:
            a, b = rank_one_scaling(self.alpha.square().unflatten(1, (channels, -1)).mean(2).sqrt())
            return a.diag(), b.diag()
        right, left = torch.eye(channels, dtype=torch.float64), torch.eye(filters, dtype=torch.float64)
        if self.sigma is not None:
            moment = self.sigma.diagonal_blocks(channels)
            right = psd_root(moment) if dense[1] else moment.diagonal().sqrt().diag()
        if self.gamma is not None and self.left_root is not None:
            left = self.left_root if dense[0] else self.gamma.diagonal().double().sqrt().diag()
        return left, right

    @cached_property
    def left_root(self) -> Float64[Tensor, "f f"] | None:
        """Lower triangular L [F, F] with L·Lᵀ = Γ, or None without Γ."""
        return None if self.gamma is None else psd_root(self.gamma.double())

    def halfway(self) -> Metric:
        """The sum of the metric and, at equal scale, the one with a Frobenius norm in the place of Σ."""
        return self if self.sigma is None else replace(self, sigma=self.sigma.halfway())

    def reordered(self, index: Int[Tensor, " n"]) -> Metric:
        """The metric of a layer whose inputs come in the order `index` [n]."""
        sigma = None if self.sigma is None else self.sigma.reordered(index)
        alpha, mean = (None if t is None else t[..., index] for t in (self.alpha, self.mean))
        return replace(self, sigma=sigma, alpha=alpha, mean=mean)

    def apply(self, delta: Float[Tensor, "f n"]) -> Float[Tensor, "f n"]:
        """Half the gradient of the form at Δ [F, n]."""
        if self.alpha is not None:
            return self.alpha.square().to(delta.dtype) * delta
        out = delta if self.sigma is None else self.sigma.times(delta)
        return out if self.gamma is None else self.gamma.to(out.dtype) @ out

    def gram(self, first: Float[Tensor, "m n"], second: Float[Tensor, "l n"] | None = None) -> Float64[Tensor, "m l"]:
        """`first · Σ · secondᵀ` for rows [m, n], in float64."""
        if self.sigma is not None:
            return self.sigma.gram(first, second)
        return (first @ (first if second is None else second).mT).double()

    def squared_error(self, delta: Float[Tensor, "f ..."]) -> float:
        """The form at an error [F, ...]."""
        delta = delta.flatten(1)
        if self.alpha is not None:
            delta = self.alpha.to(delta.dtype) * delta
        if self.sigma is None or self.alpha is not None:
            return float(square_sum(delta))
        value = self.sigma.energy(delta) if self.gamma is None else (self.gamma.double() * self.sigma.gram(delta)).sum()
        return float(value.clamp_min(0))


def squared_error(metrics: Sequence[Metric], delta: Float[Tensor, "f c *taps"]) -> float:
    """The form at a layer's error [F, C/g, kh, kw], summed over its groups."""
    return sum(m.squared_error(part) for m, part in zip(metrics, delta.chunk(len(metrics)), strict=True))


def relative_error(
    metrics: Sequence[Metric], weight: Float[Tensor, "f c *taps"], approximation: Float[Tensor, "f c *taps"]
) -> float:
    """√(form(W − W̃) / form(W)) of a layer; 0 where both vanish."""
    weight, approximation = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (weight, approximation))
    total, error = squared_error(metrics, weight), squared_error(metrics, weight - approximation)
    return (error / total) ** 0.5 if total > 0 else 0.0 if error == 0 else float("inf")
