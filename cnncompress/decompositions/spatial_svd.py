"""Spatial SVD: a vertical and a horizontal convolution (Tai et al. 2016, Theorem 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from cnncompress.chains.spec import Chain, ConvSpec, Rank, convolutions
from cnncompress.chains.stages import Normalised
from cnncompress.decompositions.base import Decomposition, register
from cnncompress.decompositions.channel_svd import balance
from cnncompress.decompositions.options import one_of
from cnncompress.maths.linalg import psd_root, rank_one_scaling, truncated_svd
from cnncompress.metrics import Metric


@register
class SpatialSVD(Decomposition):
    """kh×1 with C→K, then 1×kw with K→F: the exact minimiser of ‖W − Σ_k H_k ⊗ V_k‖_F over rank K.

    With `first=horizontal` the same for the transposed kernel: 1×kw with C→K, then kh×1 with K→F. With `norm=batch` the
    second one trains with batch normalisation after it, where the network has none there (the paper's §3).
    """

    whitens = True
    sliced = True
    any_width = True
    name = "spatial-svd"
    source = "Tai et al. 2016, Theorem 1"
    options = {"first": "vertical", "norm": "none"}  # noqa: RUF012

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        one_of(self, first=("vertical", "horizontal"), norm=("none", "batch"))

    @property
    def transposed(self) -> bool:
        """True where the horizontal stage comes first."""
        return self.settings["first"] == "horizontal"

    @property
    def normalises(self) -> bool:
        """True where a batch normalisation is asked for."""
        return self.settings["norm"] == "batch"

    def not_normalising(self) -> SpatialSVD:
        """The same without one."""
        return type(self)(**self.settings | {"norm": "none"})

    def group_refuse(self, spec: ConvSpec) -> str | None:
        """A kernel of one row or one column is already one-dimensional."""
        if spec.linear:
            return "a Linear has no spatial extent"
        if 1 in spec.kernel_size:
            kh, kw = spec.kernel_size
            return f"{kh}×{kw}: the kernel has nothing to separate"
        return None

    def group_full_rank(self, spec: ConvSpec) -> Rank:
        """min(C·kh, F·kw), or min(C·kw, F·kh) with the horizontal stage first."""
        kh, kw = spec.kernel_size[::-1] if self.transposed else spec.kernel_size
        return (min(spec.in_channels * kh, spec.out_channels * kw),)

    def group_stages(self, spec: ConvSpec, rank: Rank) -> Chain:
        """Stride, padding and dilation go to the stage that extends along their axis."""
        if self.normalises:
            first, second = self.not_normalising().group_stages(spec.replace(bias=True), rank)
            return first, Normalised(**vars(second))
        if self.transposed:
            chain = SpatialSVD().group_stages(transpose(spec), rank)
            return tuple(transpose(stage) for stage in convolutions(chain))
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

    def matricization(self, weight: Float[Tensor, "f c kh kw"]) -> Float[Tensor, "rows columns"]:
        """[C·kh, F·kw]: rows (c, y), columns (f, x); of the transposed kernel with the horizontal stage first."""
        weight = weight.mT if self.transposed else weight
        F, C, kh, kw = weight.shape
        return weight.permute(1, 2, 0, 3).reshape(C * kh, F * kw)

    def optimal(self, metric: Metric) -> bool:
        """Exact under Frobenius."""
        return metric.plain

    def group_factorize(self, weight: Tensor, spec: ConvSpec, rank: Rank, metric: Metric) -> list[Tensor]:
        """SVD of the matricization, √S on either side.

        Another metric scales rows (c, y) and columns (f, x) first, as far as a product of two factors can follow it:
        the input moment within a kernel column, averaged over columns, and Γ; or α as a product of two vectors.
        """
        if self.transposed:
            flipped = metric.reordered(transposition(spec))
            kernels = SpatialSVD().group_factorize(weight.mT, transpose(spec), rank, flipped)
            return [kernel.mT for kernel in kernels]
        F, C, kh, kw = weight.shape
        matrix = self.matricization(weight)
        if self.optimal(metric):
            U, S, Vh = truncated_svd(matrix, rank[0])
            root = S.sqrt()
            first, second = (U * root).mT, Vh.mT * root
        else:
            first, second = self._scaled(matrix.double(), (F, C, kh, kw), rank[0], metric)
        vertical = first.reshape(rank[0], C, kh, 1)
        horizontal = second.reshape(F, kw, rank[0]).permute(0, 2, 1).reshape(F, rank[0], 1, kw)
        return [vertical, horizontal]

    def _scaled(
        self, matrix: Float64[Tensor, "rows columns"], shape: Sequence[int], rank: int, metric: Metric
    ) -> tuple[Float64[Tensor, "{rank} rows"], Float64[Tensor, "columns {rank}"]]:
        F, C, kh, kw = shape
        if metric.alpha is not None:
            a, b = rank_one_scaling(self.matricization(metric.alpha.double().reshape(F, C, kh, kw)))
            U, S, Vh = truncated_svd(a[:, None] * matrix * b, rank)
            return balance((U * S / a[:, None]).mT, (Vh / b).mT)
        if metric.sigma is None:
            rows = torch.eye(C * kh, dtype=torch.float64)
        else:
            rows = psd_root(metric.sigma.diagonal_blocks(C * kh))
        columns = torch.eye(F, dtype=torch.float64) if metric.left_root is None else metric.left_root
        scaled = ((rows.mT @ matrix).reshape(-1, F, kw).transpose(1, 2) @ columns).transpose(1, 2)
        U, S, Vh = truncated_svd(scaled.reshape(C * kh, F * kw), rank)
        first = torch.linalg.solve_triangular(rows.mT, U * S, upper=True)
        second = torch.linalg.solve_triangular(columns.mT, Vh.mT.reshape(F, kw * rank), upper=True)
        return balance(first.mT, second.reshape(F * kw, rank))


def transpose(spec: ConvSpec) -> ConvSpec:
    """The geometry with its two axes exchanged."""
    padding = spec.padding if isinstance(spec.padding, str) else spec.padding[::-1]
    return spec.replace(
        kernel_size=spec.kernel_size[::-1], stride=spec.stride[::-1], padding=padding, dilation=spec.dilation[::-1]
    )


def transposition(spec: ConvSpec) -> Int[Tensor, " n"]:
    """The index of each input (channel, x, y) of the transposed kernel among the inputs (channel, y, x)."""
    _, C, kh, kw = spec.weight_shape
    return torch.arange(C * kh * kw).reshape(C, kh, kw).mT.flatten()
