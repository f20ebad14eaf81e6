"""Biclustering: input channels and filters in clusters, a low-rank decomposition for every pair of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from math import ceil
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cnncompress.chains.spec import Chain, ConvSpec, Permutation, Rank, Stage
from cnncompress.decompositions.base import Decomposition, register
from cnncompress.decompositions.cp import exact_factors
from cnncompress.decompositions.sensitivity import balanced
from cnncompress.errors import UsageError
from cnncompress.maths.clustering import balanced_kmeans, nearest_divisor
from cnncompress.metrics import Metric

# Greedy rank-one fits: alternating steps at most, and the relative gain below which a fit ends.
MAX_STEPS = 10
LEAST_GAIN = 1e-3

T = TypeVar("T", Stage, Tensor)


class Bicluster(Decomposition):
    """Balanced clusters of channels and filters, and a chain for every pair (g, h) side by side as groups.

    `G` and `H` are the numbers of clusters of input channels and of filters; each becomes the divisor of C or F nearest
    to it as a ratio. The rank is (G, H, ...) with these, so that it shows what was taken; a request names the rest.
    Clusters do not depend on the rank of the parts. `seed` and `restarts` are those of the clustering.
    """

    options = {"G": 2, "H": 2, "restarts": 10, "seed": 0}  # noqa: RUF012
    counts = ("G", "H", "restarts")

    @abstractmethod
    def part_full_rank(self, f: int, c: int, positions: int) -> Rank:
        """The rank at which every part [f, c, positions] is reproduced exactly."""

    @abstractmethod
    def middle_groups(self, rank: Rank) -> int:
        """Groups of the kh×kw stage."""

    @abstractmethod
    def part_factorize(
        self, parts: Float[Tensor, "n f c p"], rank: Rank
    ) -> tuple[Float[Tensor, "n c k1"], Float[Tensor, "n k2 width p"], Float[Tensor, "n f k2"]]:
        """Of parts [n, f, c, P]: inputs [n, c, K1], kernels [n, K2, channels a group, P] and outputs [n, f, K2]."""

    def clusters(self, spec: ConvSpec) -> tuple[int, int]:
        """(G, H) of a layer: the divisors of its channels and filters nearest to what was asked for."""
        return (
            nearest_divisor(spec.in_channels, self.settings["G"]),
            nearest_divisor(spec.out_channels, self.settings["H"]),
        )

    def refuse(self, spec: ConvSpec) -> str | None:
        """Grouped convolutions would need a permutation across groups."""
        if spec.groups > 1 and not spec.depthwise:
            return "grouped: its channels would have to change places across groups"
        return super().refuse(spec)

    def group_refuse(self, spec: ConvSpec) -> str | None:
        """Not 1×1, and divisible into clusters where clusters are asked for."""
        if spec.linear:
            return "a Linear takes the method svd"
        if spec.pointwise:
            return "a 1×1 convolution takes the method channel-svd"
        names, sizes = ("input channels", "filters"), (spec.in_channels, spec.out_channels)
        for what, size, letter, count in zip(names, sizes, "GH", self.clusters(spec), strict=True):
            asked = self.settings[letter]
            if count == 1 < asked:
                return f"{size} {what} make no equal clusters, {letter}={asked} or near it; give {letter}=1 for none"
        return None

    def group_full_rank(self, spec: ConvSpec) -> Rank:
        """G, H and the full rank of a part."""
        G, H = self.clusters(spec)
        F, C, kh, kw = spec.weight_shape
        return (G, H, *self.part_full_rank(F // H, C // G, kh * kw))

    def rank(self, spec: ConvSpec, request: int | float | Sequence[int]) -> Rank:
        """(G, H, ...) of this layer, with the request for the ranks of its parts; such a tuple stays as it is."""
        clusters = self.clusters(spec.group())
        if not isinstance(request, int | float):
            request = tuple(request)
            if len(request) == len(self.rank_names):
                request = (*clusters, *request)
            if len(request) != len(self.rank_names) + 2 or request[:2] != clusters:
                G, H = clusters
                names = ", ".join(self.rank_names)
                raise UsageError(f"{self.name} takes the rank ({names}), after G={G}, H={H} or alone, not {request}")
        return (*clusters, *super().rank(spec, request)[2:])

    def group_stages(self, spec: ConvSpec, rank: Rank) -> Chain:
        """The middle stage keeps the layer's geometry; permutations that would change nothing are left out."""
        G, H, C, F = rank[0], rank[1], spec.in_channels, spec.out_channels
        K1, K2 = G * H * rank[2], G * H * rank[-1]
        middle = spec.replace(in_channels=K1, out_channels=K2, groups=self.middle_groups(rank), bias=False)
        first, last = ConvSpec(C, K1, groups=G), ConvSpec(K2, F, groups=H, bias=spec.bias)
        chain: list[Stage] = [Permutation(C), first, middle, Permutation(K2), last, Permutation(F)]
        return tuple(needed(chain, rank, C, F))

    def group_factorize(self, weight: Tensor, spec: ConvSpec, rank: Rank, metric: Metric) -> list[Tensor]:
        """Cluster channels and filters, then decompose every part."""
        weight = weight.double()
        (F, C, kh, kw), (G, H) = weight.shape, rank[:2]
        channels = self.cluster(weight.transpose(0, 1).flatten(1), G)
        filters = self.cluster(weight.flatten(1), H)
        blocks = weight[filters][:, channels].reshape(H, F // H, G, C // G, kh * kw)
        inputs, cores, outputs = self.part_factorize(blocks.permute(2, 0, 1, 3, 4).flatten(0, 1), rank[2:])
        K2 = outputs.shape[2]
        shuffle = torch.arange(G * H * K2, device=weight.device).reshape(G, H, K2).transpose(0, 1).flatten()
        first = inputs.mT.reshape(-1, C // G, 1, 1)
        middle = cores.flatten(0, 1).unflatten(-1, (kh, kw))
        last = outputs.reshape(G, H, F // H, K2).permute(1, 2, 0, 3).reshape(F, G * K2, 1, 1)
        return needed([channels, first, middle, shuffle, last, torch.argsort(filters)], rank, C, F)

    def cluster(self, points: Float[Tensor, "n d"], k: int) -> Int[Tensor, " n"]:
        """The rows of `points` [n, d] sorted into k balanced clusters, as indices [n].

        A cluster should span few dimensions rather than be narrow, so the distance is that to a subspace, of a third as
        many dimensions as the cluster has points: whatever the rank, so that a higher one has the same clusters.
        """
        n = len(points)
        if k in (1, n):
            return torch.arange(n, device=points.device)
        search = {name: self.settings[name] for name in ("restarts", "seed")}
        clustering = balanced_kmeans(points, k, subspace=ceil(n / k / 3), **search)
        return clustering.order.to(points.device)


def needed(six: list[T], rank: Rank, channels: int, filters: int) -> list[T]:
    """Of permutation, first, middle, shuffle, last, permutation: all but the permutations that change nothing."""
    G, H = rank[:2]
    keep = [1 < G < channels, True, True, min(G, H) > 1, True, 1 < H < filters]
    return [item for item, kept in zip(six, keep, strict=True) if kept]


@register
class BiclusterSVD(Bicluster):
    """[permutation ·] 1×1 in G groups, kh×kw in G·H groups K1→K2, [shuffle ·] 1×1 in H groups [· permutation].

    A part is truncated by one SVD of its input channels, then one of its output channels.
    """

    name = "bicluster-svd"
    source = "Denton et al. 2014 §3.4 (two SVDs)"
    rank_names = ("K1", "K2")

    def part_full_rank(self, f: int, c: int, positions: int) -> Rank:
        """(min(c, f·P), min(f, c·P))."""
        return min(c, f * positions), min(f, c * positions)

    def middle_groups(self, rank: Rank) -> int:
        """A group for every part."""
        return rank[0] * rank[1]

    def part_factorize(
        self, parts: Float[Tensor, "n f c p"], rank: Rank
    ) -> tuple[Float[Tensor, "n c k1"], Float[Tensor, "n k2 width p"], Float[Tensor, "n f k2"]]:
        """Orthonormal factors and the core between them."""
        U_in = leading_eigenvectors(torch.einsum("nfcp,nfdp->ncd", parts, parts), rank[0])
        narrowed = torch.einsum("nfcp,nck->nfkp", parts, U_in)
        U_out = leading_eigenvectors(torch.einsum("nfkp,ngkp->nfg", narrowed, narrowed), rank[1])
        return U_in, torch.einsum("nfkp,nfm->nmkp", narrowed, U_out), U_out


@register
class BiclusterOuter(Bicluster):
    """[permutation ·] 1×1 in G groups, depthwise kh×kw on G·H·K, [shuffle ·] 1×1 in H groups [· permutation].

    A part is a sum of K outer products, fitted one after the other to what the ones before it left over.
    """

    name = "bicluster-outer"
    source = "Denton et al. 2014 §3.4 (outer products)"

    def part_full_rank(self, f: int, c: int, positions: int) -> Rank:
        """min(c·P, f·P, c·f)."""
        return (min(c * positions, f * positions, c * f),)

    def middle_groups(self, rank: Rank) -> int:
        """Depthwise."""
        return rank[0] * rank[1] * rank[2]

    def part_factorize(
        self, parts: Float[Tensor, "n f c p"], rank: Rank
    ) -> tuple[Float[Tensor, "n c k1"], Float[Tensor, "n k2 width p"], Float[Tensor, "n f k2"]]:
        """Outer products with equal norms on the three sides."""
        if rank >= self.part_full_rank(*parts.shape[1:]):
            exact = [balanced(exact_factors(part, rank[0])) for part in parts]
            outputs, inputs, taps = (torch.stack(factor) for factor in zip(*exact, strict=True))
        else:
            outputs, inputs, taps = greedy_outer_products(parts, rank[0])
        return inputs, taps.mT[:, :, None], outputs


def leading_eigenvectors(moments: Float[Tensor, "n m m"], rank: int) -> Float[Tensor, "n m {rank}"]:
    """Eigenvectors [n, m, rank] of the largest eigenvalues of symmetric matrices [n, m, m], largest first."""
    return torch.linalg.eigh(moments)[1][..., -rank:].flip(-1)


def greedy_outer_products(
    parts: Float[Tensor, "n f c p"], rank: int
) -> tuple[Float[Tensor, "n f {rank}"], Float[Tensor, "n c {rank}"], Float[Tensor, "n p {rank}"]]:
    """Factors A [n, F, K], B [n, C, K], D [n, P, K] with Σ_k A ∘ B ∘ D ≈ parts [n, F, C, P].

    Rank-one alternating least squares and deflation, K times (Denton et al. 2014 §3.2.2; Zhang and Golub 2001): every
    product lowers the error, and the first K do not depend on those after them.
    """
    rest, products = parts.flatten(1, 2).clone(), []
    for _ in range(rank):
        a, b, d, scale = rank_one(rest.unflatten(1, parts.shape[1:3]))
        pairs = torch.einsum("nf,nc->nfc", a, b).flatten(1)
        rest.baddbmm_(pairs[:, :, None], (scale[:, None] * d)[:, None], alpha=-1)
        root = scale.pow(1 / 3)[:, None]
        products.append((a * root, b * root, d * root))
    A, B, D = (torch.stack(vectors, dim=2) for vectors in zip(*products, strict=True))
    return A, B, D


def rank_one(
    tensors: Float[Tensor, "n f c p"],
) -> tuple[Float[Tensor, "n f"], Float[Tensor, "n c"], Float[Tensor, "n p"], Float[Tensor, " n"]]:
    """Unit vectors a [n, F], b [n, C], d [n, P] and scale [n] ≥ 0 of good rank-one fits to tensors [n, F, C, P].

    Starts from the leading spatial vector and the leading row vector of what it leaves.
    """
    F, C = tensors.shape[1:3]
    flat = tensors.flatten(1, 2)
    d = leading_eigenvectors(flat.mT @ flat, 1)
    pairs = (flat @ d).unflatten(1, (F, C)).squeeze(3)
    if C <= F:
        b = leading_eigenvectors(pairs.mT @ pairs, 1)
    else:
        b = unit(pairs.mT @ leading_eigenvectors(pairs @ pairs.mT, 1))[0]
    scale = tensors.new_zeros(len(tensors), 1, 1)
    for _ in range(MAX_STEPS):
        for _ in range(2):  # cheap beside the passes over the tensors
            a = unit(pairs @ b)[0]
            b = unit(pairs.mT @ a)[0]
        previous = scale
        d, scale = unit(flat.mT @ (a @ b.mT).flatten(1)[:, :, None])
        if bool((scale - previous <= LEAST_GAIN * scale).all()):
            break
        pairs = (flat @ d).unflatten(1, (F, C)).squeeze(3)
    return a.squeeze(2), b.squeeze(2), d.squeeze(2), scale.flatten()


def unit(vectors: Float[Tensor, "n m 1"]) -> tuple[Float[Tensor, "n m 1"], Float[Tensor, "n 1 1"]]:
    """Columns [n, m, 1] divided by their lengths, and the lengths [n, 1, 1]; zero stays zero."""
    lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return vectors / lengths.clamp_min(torch.finfo(vectors.dtype).tiny), lengths
