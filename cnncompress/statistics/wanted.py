"""The statistics that the requested metrics need."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cnncompress.metrics import Metric, Statistic, best_with, get_metric

UNLABELLED: tuple[Statistic, ...] = ("moment", "gradient")


@dataclass(frozen=True)
class Wanted:
    """The statistics that some metrics need; `"moment" in wanted` tells whether one of them does."""

    metrics: tuple[type[Metric], ...]

    @classmethod
    def by(cls, metric: str | Iterable[str]) -> Wanted:
        """The statistics that metrics of these names need; UsageError for one that is not registered."""
        return cls(tuple(get_metric(name) for name in ([metric] if isinstance(metric, str) else metric)))

    @property
    def needs(self) -> set[Statistic]:
        """All of them."""
        return {statistic for metric in self.metrics for statistic in metric.needs}

    def __contains__(self, statistic: Statistic) -> bool:
        return any(statistic in metric.needs for metric in self.metrics)

    def asker(self, statistic: Statistic) -> str:
        """The first metric that needs a statistic, by its name."""
        return next(metric.name for metric in self.metrics if statistic in metric.needs)


def instead_of(statistic: Statistic) -> str:
    """The metric to take where a statistic cannot be had: one that needs neither that nor labels."""
    return best_with([other for other in UNLABELLED if other != statistic])
