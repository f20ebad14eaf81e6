"""Channel SVD: a convolution to K channels, then a 1×1 (Denton et al. 2014 §3.2; Zhang et al. 2015)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from cnncompress.chains.spec import Chain, ConvSpec, Rank
from cnncompress.decompositions.base import Decomposition, register
from cnncompress.maths.linalg import KRYLOV_MIN_SIDE, leading_eigenvectors, rank_one_scaling, truncated_svd
from cnncompress.metrics import Metric


class MatrixSVD(Decomposition):
    """The rank-K approximation of the weight seen as a matrix [F, C·kh·kw]."""

    whitens = True
    sliced = True
    any_width = True

    def group_full_rank(self, spec: ConvSpec) -> Rank:
        """min(F, C·kh·kw)."""
        F, C, kh, kw = spec.weight_shape
        return (min(F, C * kh * kw),)

    def group_stages(self, spec: ConvSpec, rank: Rank) -> Chain:
        """The layer itself with K outputs, then a pointwise layer K→F with the bias."""
        first = spec.replace(out_channels=rank[0], bias=False)
        second = ConvSpec(rank[0], spec.out_channels, bias=spec.bias, linear=spec.linear)
        return first, second

    def matricization(self, weight: Float[Tensor, "f c kh kw"]) -> Float[Tensor, "f n"]:
        """[F, C·kh·kw]."""
        return weight.flatten(1)

    def optimal(self, metric: Metric) -> bool:
        """Exact under every metric but an elementwise one."""
        return metric.separable

    def group_factorize(self, weight: Tensor, spec: ConvSpec, rank: Rank, metric: Metric) -> list[Tensor]:
        """SVD of the matricization, whitened on both sides; both factors get the same share of its scale.

        With Γ = L·Lᵀ the optimum is W̃ = L⁻ᵀ·U·Uᵀ·Lᵀ·W, U the leading eigenvectors of Lᵀ·W·Σ·Wᵀ·L: no root of Σ.
        """
        F, C, kh, kw = weight.shape
        matrix = self.matricization(weight)
        if metric.alpha is not None:
            a, b = rank_one_scaling(metric.alpha)
            U, S, Vh = truncated_svd(a[:, None] * matrix.double() * b, rank[0])
            first, second = S[:, None] * Vh / b, U / a[:, None]
        elif metric.sigma is None:
            U, S, Vh = truncated_svd(matrix, rank[0])
            first, second = S[:, None] * Vh, U
        else:
            first, second = self._projected(matrix, rank[0], metric)
        first, second = balance(first, second)
        return [first.reshape(rank[0], C, kh, kw), second.reshape(F, rank[0], 1, 1)]

    def group_errors(self, weight: Tensor, spec: ConvSpec, ranks: Sequence[Rank], metric: Metric) -> Tensor:
        """The energy of the eigenvalues that a rank leaves out; products for many filters in single precision."""
        if not metric.separable:
            return super().group_errors(weight, spec, ranks, metric)
        root, matrix = metric.left_root, self.matricization(weight)
        matrix = matrix.float() if len(matrix) > KRYLOV_MIN_SIDE else matrix
        moment = metric.gram(matrix).to(matrix.dtype)
        moment = moment if root is None else root.mT.to(moment) @ moment @ root.to(moment)
        values = torch.linalg.eigvalsh(moment.double()).clamp_min(0)
        kept = torch.cat([values.new_zeros(1), values.cumsum(0)])  # ascending: what the first ones hold
        return torch.stack([kept[max(0, len(values) - rank[0])] for rank in ranks])

    def _projected(
        self, matrix: Float[Tensor, "f n"], rank: int, metric: Metric
    ) -> tuple[Float[Tensor, "{rank} n"], Float[Tensor, "f {rank}"]]:
        root = metric.left_root
        moment = metric.gram(matrix)
        if root is None:
            U = leading_eigenvectors(moment, rank)
            return U.mT.to(matrix.dtype) @ matrix, U
        U = leading_eigenvectors(root.mT @ moment @ root, rank)
        return (root @ U).mT.to(matrix.dtype) @ matrix, torch.linalg.solve_triangular(root.mT, U, upper=True)


def balance(
    first: Float[Tensor, "k n"], second: Float[Tensor, "f k"]
) -> tuple[Float[Tensor, "k n"], Float[Tensor, "f k"]]:
    """The same product with rows of `first` [K, n] and columns of `second` [F, K] of equal norms."""
    one, two = torch.linalg.vector_norm(first.double(), dim=1), torch.linalg.vector_norm(second.double(), dim=0)
    good = (one > 0) & (two > 0)
    share = torch.where(good, (two / one.clamp_min(torch.finfo(one.dtype).tiny)).sqrt(), torch.ones_like(one))
    return first * share[:, None].to(first.dtype), second / share.to(second.dtype)


@register
class ChannelSVD(MatrixSVD):
    """kh×kw with C→K, then 1×1 with K→F."""

    name = "channel-svd"
    source = "Denton et al. 2014 §3.2.2; Zhang et al. 2015"

    def group_refuse(self, spec: ConvSpec) -> str | None:
        """Convolutions only."""
        return "a Linear takes the method svd" if spec.linear else None
