"""The Frobenius norm: every entry of the weight counts the same."""

from __future__ import annotations

from cnncompress.chains.spec import ConvSpec
from cnncompress.metrics.base import Metric, register
from cnncompress.metrics.statistics import LayerStatistics


@register
class Frobenius(Metric):
    """‖Δ‖²_F."""

    name = "frobenius"
    source = "Eckart and Young 1936"

    @classmethod
    def of(cls, spec: ConvSpec, statistics: LayerStatistics) -> list[Metric]:
        """The same for every group."""
        return [cls()] * spec.groups


FROBENIUS = Frobenius()
