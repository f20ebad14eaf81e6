"""ACDC: depthwise, then a 1×1 whose weight is a product of diagonals and cosine transforms (SECL 2018)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cnncompress.chains.compose import compose
from cnncompress.chains.spec import Chain, ConvSpec, Rank, Stage
from cnncompress.chains.stages import Acdc
from cnncompress.decompositions.base import Decomposition, register
from cnncompress.decompositions.options import one_of
from cnncompress.decompositions.refine import descend_together
from cnncompress.decompositions.scratch import normal
from cnncompress.metrics import FROBENIUS, Metric

DEPTH = 12  # layers of diagonals, as in the paper
SPREAD = 0.1  # standard deviation of the entries of diagonals around one (Moczulski et al. 2016, §6.1)
WORK = 2**34  # multiplications of a fit, from which on it takes fewer steps
FEWEST_STEPS = 10


@register
class ACDC(Decomposition):
    """Depthwise kh×kw, then 1×1 as `depth` layers of diagonals and cosine transforms C→F.

    The rank is the depth, up to 12, which is the default; a fraction leaves it there. At any depth the chain runs as
    plain convolutions and costs the same. It trains as the diagonals. With `taps` diagonals each depthwise filter is
    a product too, of one layer (SECL-LR): 2·max(kh, kw) entries for kh·kw. Fits descend from random diagonals in at
    most `steps` steps, fewer in wide layers, and are local optima: no rank is exact.
    """

    name = "acdc"
    source = "SECL 2018; Moczulski et al. 2016"
    rank_names = ("depth",)
    options = {"taps": "free", "steps": 200, "seed": 0}  # noqa: RUF012
    counts = ("steps",)
    exact = False
    whitens = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        one_of(self, taps=("free", "diagonals"))

    def group_refuse(self, spec: ConvSpec) -> str | None:
        """Convolutions only."""
        return "a Linear takes the method svd" if spec.linear else None

    def group_full_rank(self, spec: ConvSpec) -> Rank:
        """The depth of the paper."""
        return (DEPTH,)

    def rank(self, spec: ConvSpec, request: int | float | Sequence[int]) -> Rank:
        """The depth."""
        return self.full_rank(spec) if isinstance(request, float) else super().rank(spec, request)

    def group_stages(self, spec: ConvSpec, rank: Rank) -> Chain:
        """The depthwise stage keeps the layer's geometry; a pointwise layer needs none."""
        if spec.pointwise:
            return (Acdc(spec, rank[0]),)
        channels = spec.in_channels
        depthwise = spec.replace(out_channels=channels, groups=channels, bias=False)
        filters: Stage = depthwise if self.settings["taps"] == "free" else Acdc(depthwise, 1)
        return filters, Acdc(ConvSpec(channels, spec.out_channels, bias=spec.bias), rank[0])

    def group_scratch(self, spec: ConvSpec, rank: Rank, generator: torch.Generator) -> list[Tensor]:
        """Diagonals near one, which keep the scale of a signal; σ² = 2 / kh·kw for the depthwise stage.

        Where channels are added in the end, its variance is lower by their number. Filters that diagonals make have
        the same squared norm on average; theirs are of mean zero, so that filters differ.
        """
        *depthwise, last = self.group_stages(spec, rank)
        kernels = [1 + normal(last.tensors()["diagonals"].shape, SPREAD**2, generator)]
        if depthwise:
            C, F = spec.in_channels, spec.out_channels
            kernels.insert(0, _filters(depthwise[0], 2 / max(1, C / F), generator))
        return kernels

    def quick(self) -> ACDC:
        """A quarter of the steps."""
        return type(self)(**self.settings | {"steps": max(1, self.settings["steps"] // 4)})

    # --- fits ---

    def group_factorize(self, weight: Tensor, spec: ConvSpec, rank: Rank, metric: Metric) -> list[Tensor]:
        """Steps of L-BFGS on all kernels together under the Frobenius norm, then under the metric."""
        weight, chain = weight.double(), self.group_stages(spec, rank)
        kernels, places = self._start(weight, spec, rank), range(len(chain))
        if not weight.any():
            return [*kernels[:-1], torch.zeros_like(kernels[-1])]
        width = max(weight.shape[:2])
        steps = min(self.settings["steps"], max(FEWEST_STEPS, WORK // (6 * rank[0] * width**3)))
        for form in (FROBENIUS,) if metric.plain else (FROBENIUS, metric):
            kernels = _scaled(chain, kernels, weight, form)
            kernels = descend_together(chain, kernels, places, weight, form, steps)
        return kernels

    def _start(self, weight: Tensor, spec: ConvSpec, rank: Rank) -> list[Tensor]:
        """The taps that explain most of each channel, and diagonals near one, the first with the channels' scale."""
        generator = torch.Generator().manual_seed(self.settings["seed"])
        kernels = self.group_scratch(spec, rank, generator)
        channels = weight.transpose(0, 1).flatten(2)  # [C, F, kh·kw]
        _, values, taps = torch.linalg.svd(channels, full_matrices=False)
        if len(kernels) > 1:
            filters, first = taps[:, 0].reshape(-1, 1, *spec.kernel_size), self.group_stages(spec, rank)[0]
            if isinstance(first, Acdc):
                dense, steps = first.whole.ungroup(filters), self.settings["steps"]
                (kernels[0],) = descend_together((first,), kernels[:1], (0,), dense, FROBENIUS, steps)
            else:
                kernels[0] = filters
        scale = values[:, 0]
        kernels[-1][0, 0] *= scale[torch.arange(kernels[-1].shape[-1]) % len(scale)]
        return kernels


def _filters(stage: Stage, norm: float, generator: torch.Generator) -> Tensor:
    """A random kernel of a depthwise stage whose filters have the squared norm `norm` on average."""
    if stage.linear_kernel:
        shape = stage.tensors()["weight"].shape
        return normal(shape, norm / math.prod(shape[1:]), generator)
    diagonals = normal(stage.tensors()["diagonals"].shape, 1.0, generator)
    made = stage.compose(None, diagonals)
    diagonals[:, 0] *= (norm * stage.in_channels / float(made.square().sum())) ** 0.5
    return diagonals


def _scaled(chain: Chain, kernels: list[Tensor], weight: Tensor, metric: Metric) -> list[Tensor]:
    """The kernels with the multiple of the last one's last diagonal that has the least error."""
    made = compose(chain, kernels).flatten(1)
    image = metric.apply(made)
    size = float((made * image).sum())
    kernels = [kernel.clone() for kernel in kernels]
    kernels[-1][-1, -1] *= float((weight.flatten(1) * image).sum()) / size if size > 0 else 0.0
    return kernels
