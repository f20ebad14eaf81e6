"""Channel SVD: a convolution to K channels, then a 1×1 (Denton et al. 2014 §3.2; Zhang et al. 2015)."""

from __future__ import annotations

from torch import Tensor

from cnncompress.decompositions.base import Decomposition, register
from cnncompress.linalg import truncated_svd
from cnncompress.metrics import Metric
from cnncompress.spec import Chain, ConvSpec, Rank


class MatrixSVD(Decomposition):
    """The rank-K approximation of the weight seen as a matrix [F, C·kh·kw]."""

    def group_full_rank(self, spec: ConvSpec) -> Rank:
        """min(F, C·kh·kw)."""
        F, C, kh, kw = spec.weight_shape
        return (min(F, C * kh * kw),)

    def group_stages(self, spec: ConvSpec, rank: Rank) -> Chain:
        """The layer itself with K outputs, then a pointwise layer K→F with the bias."""
        first = spec.replace(out_channels=rank[0], bias=False)
        second = ConvSpec(rank[0], spec.out_channels, bias=spec.bias, linear=spec.linear)
        return first, second

    def matricization(self, weight: Tensor) -> Tensor:
        """[F, C·kh·kw]."""
        return weight.flatten(1)

    def group_factorize(self, weight: Tensor, spec: ConvSpec, rank: Rank, metric: Metric) -> list[Tensor]:
        """SVD of the matricization, √S on either side."""
        F, C, kh, kw = weight.shape
        U, S, Vh = truncated_svd(self.matricization(weight), rank[0])
        root = S.sqrt()
        first = (root[:, None] * Vh).reshape(rank[0], C, kh, kw)
        return [first, (U * root).reshape(F, rank[0], 1, 1)]


@register
class ChannelSVD(MatrixSVD):
    """kh×kw with C→K, then 1×1 with K→F."""

    name = "channel-svd"
    source = "Denton et al. 2014 §3.2.2; Zhang et al. 2015"

    def group_refuse(self, spec: ConvSpec) -> str | None:
        """Convolutions only."""
        return "a Linear takes the method svd" if spec.linear else None
