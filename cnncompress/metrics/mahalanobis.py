"""An element-wise metric from the gradients toward the most probable wrong classes."""

from __future__ import annotations

from cnncompress.chains.spec import ConvSpec
from cnncompress.errors import CompressError
from cnncompress.metrics.base import Metric, register
from cnncompress.metrics.statistics import LayerStatistics

FLOOR = 0.5  # what Denton et al. add to the sensitivities after scaling, so that none vanishes


@register
class Mahalanobis(Metric):
    """Σ_p (α_p Δ_p)², α the root mean square gradient toward the most probable wrong classes.

    α is scaled to a mean of 1 over the layer and `FLOOR` is added, as the authors do.
    """

    name = "mahalanobis"
    source = "Denton et al. 2014, eq. 1 and 2"
    needs = ("sensitivity",)

    @classmethod
    def of(cls, spec: ConvSpec, statistics: LayerStatistics) -> list[Metric]:
        """The rows of α that are each group's."""
        if statistics.sensitivity is None:
            raise CompressError(
                "the statistics hold no gradients of the weights; collect them for the metric mahalanobis"
            )
        root = statistics.sensitivity.double().sqrt().flatten(1)
        alpha = root / (float(root.mean()) or 1.0) + FLOOR
        return [cls(alpha=part) for part in alpha.chunk(spec.groups)]
