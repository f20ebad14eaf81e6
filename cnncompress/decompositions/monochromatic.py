"""Monochromatic filters: a 1×1 convolution to a few colours, then filters that see one colour each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cnncompress.chains.spec import Chain, ConvSpec, Permutation, Rank
from cnncompress.decompositions.base import Decomposition, register
from cnncompress.decompositions.lines import STARTS_WHERE_SMALL, find_lines, form_of
from cnncompress.errors import UsageError
from cnncompress.maths.clustering import balanced_kmeans, divisors
from cnncompress.metrics import Metric


@register
class Monochromatic(Decomposition):
    """1×1 C→colours, grouped kh×kw colours→F, permutation F: every filter sees one direction of the input channels.

    Equal groups need a number of colours that divides F: a whole number or a fraction of F becomes the nearest divisor
    at or below it, an explicit `colours` that does not divide F is refused. `seed` and `restarts` are those of the
    clustering. A filter of rank above one in (channel, position) is never reproduced exactly; at F colours every filter
    has its own best one. The paper clusters the filters of a whitened weight; where a metric's fit is refined, clusters
    and colours are looked for by the metric's own distances too (`lines`).
    """

    name = "monochromatic"
    source = "Denton et al. 2014 §3.3"
    rank_names = ("colours",)
    options = {"restarts": 10, "seed": 0}  # noqa: RUF012
    counts = ("restarts",)
    exact = False

    def refuse(self, spec: ConvSpec) -> str | None:
        """Grouped convolutions would need a permutation across groups."""
        if spec.groups > 1 and not spec.depthwise:
            return "grouped: its filters would have to change places across groups"
        return super().refuse(spec)

    def group_refuse(self, spec: ConvSpec) -> str | None:
        """Without positions or without channels there is nothing to share a colour."""
        if spec.linear:
            return "a Linear takes the method svd"
        if spec.pointwise:
            return "1×1: a filter of one position is a colour already; the method is channel-svd"
        return "a single input channel is one colour already" if spec.in_channels == 1 else None

    def group_full_rank(self, spec: ConvSpec) -> Rank:
        """F: a colour for every filter."""
        return (spec.out_channels,)

    def rank(self, spec: ConvSpec, request: int | float | Sequence[int]) -> Rank:
        """The number of colours, a divisor of F; UsageError for explicit colours that do not divide it."""
        F = spec.out_channels
        (colours,) = super().rank(spec, request)
        if colours > F:
            return (colours,)
        if isinstance(request, int | float):
            return (max(d for d in divisors(F) if d <= colours),)
        check_divides(colours, F)
        return (colours,)

    def group_stages(self, spec: ConvSpec, rank: Rank) -> Chain:
        """The grouped stage keeps the layer's geometry; one colour, or one a filter, needs no permutation."""
        colours, F = rank[0], spec.out_channels
        check_divides(colours, F)
        chain: Chain = (ConvSpec(spec.in_channels, colours), spec.replace(in_channels=colours, groups=colours))
        return chain if colours in (1, F) else (*chain, Permutation(F))

    def fitted_in(self, metric: Metric) -> Metric:
        """Half the Frobenius norm: the authors raise the eigenvalues of Σ too.

        One colour for whole filters leaves errors so large that Σ alone does not say what they do. Directions of little
        energy, in which natural images have their details, would be given up for next to nothing in the others.
        """
        return metric.halfway()

    def group_factorize(self, weight: Tensor, spec: ConvSpec, rank: Rank, metric: Metric) -> list[Tensor]:
        """Cluster the lines of the filters' leading singular vectors, weighted by their energy.

        A colour is the unit vector that keeps most of its filters, and each of them is its projection on it.
        """
        F, _, kh, kw = weight.shape
        filters = weight.double().flatten(2)
        search = {name: self.settings[name] for name in ("restarts", "seed")}
        clustering = balanced_kmeans(leading_vectors(filters), rank[0], subspace=1, **search)
        order = clustering.order.to(weight.device)
        members = filters[order].unflatten(0, (rank[0], -1))
        directions = leading_vectors(members.transpose(1, 2).flatten(2))
        colours = torch.nn.functional.normalize(directions, dim=1, eps=torch.finfo(directions.dtype).tiny)
        coefficients = torch.einsum("kc,kscp->ksp", colours, members)
        return kernels_of(colours, coefficients.reshape(F, 1, kh, kw), order)

    def group_search(
        self, starts: list[list[Tensor]], weight: Tensor, spec: ConvSpec, metric: Metric
    ) -> list[list[Tensor]]:
        """Clusters and colours by the metric's own distances, from those of the starts and from seeded filters."""
        form = form_of(weight, metric)
        if form is None:
            return []
        F, colours = len(weight), [kernels[0].flatten(1).double() for kernels in starts]
        K = len(colours[0])
        if 1 < K < F:
            generator, own = torch.Generator().manual_seed(self.settings["seed"]), leading_vectors(weight.flatten(2))
            restarts = self.settings["restarts"] * (STARTS_WHERE_SMALL if form.small else 1)
            drawn = (torch.randperm(F, generator=generator)[:K] for _ in range(restarts))
            colours += [own[index] for index in drawn]
        lines = find_lines(form, colours)
        coefficients = lines.coefficients[lines.order].reshape(F, 1, *spec.kernel_size)
        return [kernels_of(lines.colours, coefficients, lines.order)]


def kernels_of(
    colours: Float[Tensor, "k c"], coefficients: Float[Tensor, "f 1 kh kw"], order: Int[Tensor, " f"]
) -> list[Tensor]:
    """The kernels for colours [K, C] and the coefficients [F, 1, kh, kw] of filters `order` [F], sorted by colour."""
    kernels = [colours[:, :, None, None], coefficients]
    return kernels if len(colours) in (1, len(order)) else [*kernels, torch.argsort(order)]


def check_divides(colours: int, F: int) -> None:
    """UsageError where F filters do not make `colours` equal groups."""
    if F % colours:
        nearest = [max(d for d in divisors(F) if d < colours), *(d for d in divisors(F) if d > colours)][:2]
        listed = " and ".join(map(str, nearest))
        raise UsageError(f"monochromatic: {F} filters do not make {colours} equal groups; next to it are {listed}")


def leading_vectors(matrices: Float[Tensor, "n c p"]) -> Float[Tensor, "n c"]:
    """The leading left singular vectors times their singular values, [n, C], of matrices [n, C, P]."""
    if matrices.shape[1] > matrices.shape[2]:
        right = torch.linalg.eigh(matrices.mT @ matrices)[1][..., -1:]
        return (matrices @ right).squeeze(2)
    values, vectors = torch.linalg.eigh(matrices @ matrices.mT)
    return vectors[..., -1] * values[..., -1:].clamp_min(0).sqrt()
