"""The error of a layer's outputs on its inputs."""

from __future__ import annotations

from cnncompress.chains.spec import ConvSpec
from cnncompress.metrics.base import Metric, register
from cnncompress.metrics.moment import input_moment
from cnncompress.metrics.statistics import LayerStatistics


@register
class DataCovariance(Metric):
    """tr(Δ Σ Δᵀ), Σ the centred second moment of the input patches."""

    name = "data-covariance"
    source = "Denton et al. 2014, eq. 3"
    needs = ("moment",)
    centred = True

    @classmethod
    def of(cls, spec: ConvSpec, statistics: LayerStatistics) -> list[Metric]:
        """Σ of each group, shrunk, and its mean input."""
        return [cls(input_moment(spec, statistics, g), mean=statistics.mean[g]) for g in range(spec.groups)]
