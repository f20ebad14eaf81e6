"""A network in single precision and in 8-bit integers: what both take, and how both answer."""

from __future__ import annotations

from dataclasses import dataclass

from cnncompress.latency.timed import Latency
from cnncompress.network.evaluate import Evaluation


@dataclass(frozen=True)
class Measured:
    """The bytes of a program, its time, and its accuracy, None where the images have no labels."""

    bytes: int
    latency: Latency
    evaluation: Evaluation | None = None


@dataclass(frozen=True)
class Int8Measured:
    """Both precisions of a network, on `evaluated` images; `calibrated` others gave the scales.

    `top1_error` is the standard error of the change of top-1 in points. `same` is the percentage of images that both
    give the same answer to, known where the images have no labels. Weights have `weight_bits`.
    """

    single: Measured
    int8: Measured
    same: float | None
    top1_error: float | None
    calibrated: int
    evaluated: int
    weight_bits: int = 8
