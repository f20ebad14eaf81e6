"""The metrics that errors are measured in. Every module of this package that registers a class is found by itself."""

from __future__ import annotations

from collections.abc import Collection

import torch

from cnncompress.chains.spec import ConvSpec
from cnncompress.errors import UsageError, unknown
from cnncompress.metrics.base import REGISTRY, Metric, Statistic, register, relative_error, squared_error
from cnncompress.metrics.frobenius import FROBENIUS
from cnncompress.metrics.moment import Moment
from cnncompress.metrics.statistics import LayerStatistics
from cnncompress.names.classes import import_all

import_all(__name__, __path__)


def get_metric(name: str) -> type[Metric]:
    """A registered metric by name; UsageError for an unknown one."""
    if name not in REGISTRY:
        raise unknown("metric", name, sorted(REGISTRY))
    return REGISTRY[name]


def layer_metrics(name: str, spec: ConvSpec, statistics: LayerStatistics | None) -> list[Metric]:
    """The metric of each group of a layer; UsageError where it needs statistics and there are none."""
    metric = get_metric(name)
    if statistics is None:
        if metric.needs:
            raise UsageError(f"metric {name} needs calibration images; give --data, or pass statistics=")
        statistics = LayerStatistics(0, 0, torch.zeros(spec.groups, spec.weights // spec.out_channels))
    return metric.of(spec, statistics)


def best_with(held: Collection[Statistic], preferred: str = "") -> str:
    """The metric that makes the most of the statistics `held`; of equal ones `preferred`, else the first by name."""
    usable = [metric for metric in REGISTRY.values() if set(metric.needs) <= set(held)]
    return min(usable, key=lambda m: (-len(m.needs), m.name != preferred, m.name)).name


__all__ = [
    "FROBENIUS",
    "REGISTRY",
    "LayerStatistics",
    "Metric",
    "Moment",
    "Statistic",
    "best_with",
    "get_metric",
    "layer_metrics",
    "register",
    "relative_error",
    "squared_error",
]
