"""The rise of the loss, by the Fisher information of a layer as a product of two factors."""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from cnncompress.chains.spec import ConvSpec
from cnncompress.errors import CompressError
from cnncompress.maths.linalg import oas_shrinkage
from cnncompress.metrics.base import Metric, register
from cnncompress.metrics.moment import input_moment
from cnncompress.metrics.statistics import LayerStatistics

SILENT_SQUARE = 1e-30  # the mean square in the place of gradients that all vanish: no rise of the loss either
LEAST_SHARE = 1e-4  # of the identity in Γ


@register
class Kronecker(Metric):
    """tr(Γ Δ Σ Δᵀ), Γ the second moment of the loss gradient at the output, summed over positions.

    Half of it estimates the rise of the loss in nats an image, with the true Fisher.
    """

    name = "kronecker"
    source = "Martens and Grosse 2015"
    needs = ("moment", "gradient")
    centred = True
    nats = True

    @classmethod
    def of(cls, spec: ConvSpec, statistics: LayerStatistics) -> list[Metric]:
        """Σ of each group, its own block of Γ, both shrunk, and its mean input."""
        if statistics.gradient is None:
            raise CompressError("the statistics hold no output gradients; collect them for the metric kronecker")
        width = spec.out_channels // spec.groups
        metrics: list[Metric] = []
        for g in range(spec.groups):
            rows = slice(g * width, (g + 1) * width)
            gamma = _shrunk(statistics.gradient[rows, rows].double(), statistics.images)
            metrics.append(cls(input_moment(spec, statistics, g), gamma, mean=statistics.mean[g]))
        return metrics


def _shrunk(gamma: Float64[Tensor, "f f"], images: int) -> Float64[Tensor, "f f"]:
    """Γ [F, F] from a number of images, mixed with a multiple of the identity."""
    level = float(gamma.diagonal().mean()) or SILENT_SQUARE
    share = max(oas_shrinkage(gamma, images), LEAST_SHARE)
    return gamma * (1 - share) + share * level * torch.eye(len(gamma), dtype=torch.float64)
