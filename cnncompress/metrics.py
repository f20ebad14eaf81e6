"""The quadratic forms in which an approximation error is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cnncompress.errors import UsageError, nearest
from cnncompress.spec import ConvSpec


@dataclass(frozen=True)
class Metric:
    """The squared length of an error Δ = W − W̃ [F, C/g, kh, kw].

    Without moments it is ‖Δ‖²_F. A further metric fills in what it needs and `squared_error` uses it.
    """

    name: str = "frobenius"

    def squared_error(self, delta: Tensor) -> float:
        """The quadratic form at `delta`, accumulated in float64."""
        return float(sum(part.double().square().sum() for part in delta.split(256)))

    def relative_error(self, weight: Tensor, approximation: Tensor) -> float:
        """√(form(W − W̃) / form(W)); 0 where both vanish."""
        total, error = self.squared_error(weight), self.squared_error(weight - approximation)
        return (error / total) ** 0.5 if total > 0 else 0.0 if error == 0 else float("inf")


FROBENIUS = Metric()

# name -> the metric of a layer, from its spec and what calibration data told about it (None without data)
METRICS: dict[str, Callable[[ConvSpec, Any], Metric]] = {"frobenius": lambda spec, statistics: FROBENIUS}


def get_metric(name: str) -> Callable[[ConvSpec, Any], Metric]:
    """The factory of a registered metric; UsageError for an unknown name."""
    if name not in METRICS:
        raise UsageError(f"unknown metric '{name}' (known: {', '.join(METRICS)}){nearest(name, METRICS)}")
    return METRICS[name]
