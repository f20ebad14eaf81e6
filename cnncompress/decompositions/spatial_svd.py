"""Spatial SVD: a vertical and a horizontal convolution (Tai et al. 2016, Theorem 1)."""

from __future__ import annotations

from torch import Tensor

from cnncompress.decompositions.base import Decomposition, register
from cnncompress.linalg import truncated_svd
from cnncompress.metrics import Metric
from cnncompress.spec import Chain, ConvSpec, Rank


@register
class SpatialSVD(Decomposition):
    """kh×1 with C→K, then 1×kw with K→F: the exact minimiser of ‖W − Σ_k H_k ⊗ V_k‖_F over rank K."""

    name = "spatial-svd"
    source = "Tai et al. 2016, Theorem 1"

    def group_refuse(self, spec: ConvSpec) -> str | None:
        """A kernel of one row or one column is already one-dimensional."""
        if spec.linear:
            return "a Linear has no spatial extent"
        if 1 in spec.kernel_size:
            kh, kw = spec.kernel_size
            return f"{kh}×{kw}: the kernel has nothing to separate"
        return None

    def group_full_rank(self, spec: ConvSpec) -> Rank:
        """min(C·kh, F·kw)."""
        kh, kw = spec.kernel_size
        return (min(spec.in_channels * kh, spec.out_channels * kw),)

    def group_stages(self, spec: ConvSpec, rank: Rank) -> Chain:
        """Vertical stride, padding and dilation go to the first stage, the horizontal ones to the second."""
        (sh, sw), (dh, dw), (kh, kw) = spec.stride, spec.dilation, spec.kernel_size
        same = spec.padding == "same"
        ph, pw = (0, 0) if spec.padding == "same" else spec.padding
        vertical = spec.replace(
            out_channels=rank[0],
            kernel_size=(kh, 1),
            stride=(sh, 1),
            padding="same" if same else (ph, 0),
            dilation=(dh, 1),
            bias=False,
        )
        horizontal = spec.replace(
            in_channels=rank[0],
            kernel_size=(1, kw),
            stride=(1, sw),
            padding="same" if same else (0, pw),
            dilation=(1, dw),
        )
        return vertical, horizontal

    def matricization(self, weight: Tensor) -> Tensor:
        """[C·kh, F·kw]: rows (c, y), columns (f, x)."""
        F, C, kh, kw = weight.shape
        return weight.permute(1, 2, 0, 3).reshape(C * kh, F * kw)

    def group_factorize(self, weight: Tensor, spec: ConvSpec, rank: Rank, metric: Metric) -> list[Tensor]:
        """SVD of the matricization, √S on either side."""
        F, C, kh, kw = weight.shape
        U, S, Vh = truncated_svd(self.matricization(weight), rank[0])
        root = S.sqrt()
        vertical = (U * root).mT.reshape(rank[0], C, kh, 1)
        horizontal = (root[:, None] * Vh).reshape(rank[0], F, kw).permute(1, 0, 2).reshape(F, rank[0], 1, kw)
        return [vertical, horizontal]
