"""SVD of a fully connected layer (Denton et al. 2014 §3.2.1)."""

from __future__ import annotations

from cnncompress.chains.spec import ConvSpec
from cnncompress.decompositions.base import register
from cnncompress.decompositions.channel_svd import MatrixSVD


@register
class LinearSVD(MatrixSVD):
    """Linear C→K, then Linear K→F."""

    name = "svd"
    source = "Denton et al. 2014 §3.2.1"

    def group_refuse(self, spec: ConvSpec) -> str | None:
        """Linear layers only."""
        return None if spec.linear else "a convolution takes channel-svd or spatial-svd"
