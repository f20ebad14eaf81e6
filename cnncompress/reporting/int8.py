"""A network in single precision and in 8-bit integers, side by side, and the sentence that they come to."""

from __future__ import annotations

from cnncompress.processor import sums_overflow
from cnncompress.programs.measured import Int8Measured
from cnncompress.reporting.accuracy import judged
from cnncompress.reporting.cells import NONE, divide, with_share
from cnncompress.reporting.times import Columns, gain_words, milliseconds
from cnncompress.terminal.words import human

OVERFLOW = "Sums of products with 8-bit weights overflow on this processor"
FIXED_BATCH = "Here the model wants its batch size fixed (`model.reshape`) before it is compiled, as it was for these"


def int8_table(measured: Int8Measured) -> Columns:
    """A line for each precision; shares are of single precision."""
    headers, cells = ["precision", "top-1 %", "ms [p10–p90]", "share", "bytes"], []
    for name, one in (("float", measured.single), ("int8", measured.int8)):
        top1 = NONE if one.evaluation is None else f"{one.evaluation.top1:.2f}"
        share = divide(one.latency.median, measured.single.latency.median)
        size = with_share(human(one.bytes, "B"), divide(one.bytes, measured.single.bytes))
        cells.append([name, top1, milliseconds(one.latency.median, one.latency), with_share("", share).strip(), size])
    return headers, cells, "lrrrr"


def int8_sentence(measured: Int8Measured) -> str:
    """What int8 gives in time here, and what it costs in accuracy."""
    runtime = measured.int8.latency.setting.runtime
    gain = measured.single.latency.median / measured.int8.latency.median
    told = f"int8 is {gain_words(gain)} than float in {runtime} here" if gain >= 1 else "int8 is slower here"
    told += f": {1 / gain:.2f} of the time of float in {runtime}" * (gain < 1)
    cost = f"; {_cost(measured)}" if measured.evaluated else ""
    scales = f"scales from {measured.calibrated:,} {'other ' if measured.evaluated else ''}images"
    return f"{told}{cost}; {scales}.{_bits(measured)}{_batch(runtime)}"


def _bits(measured: Int8Measured) -> str:
    """That weights have less than 8 bits, or should have."""
    if measured.weight_bits == 8:
        return f" {OVERFLOW}; give --weight-bits 7." if sums_overflow() else ""
    return f" Weights have 7 bits.{f' {OVERFLOW}.' if sums_overflow() else ''}"


def _batch(runtime: str) -> str:
    """That OpenVINO answers wrongly here where the batch size is free."""
    return f" {FIXED_BATCH}." if runtime == "openvino" and sums_overflow() else ""


def _cost(measured: Int8Measured) -> str:
    images = f"{measured.evaluated:,} images"
    one, other = measured.single.evaluation, measured.int8.evaluation
    if one is None or other is None:
        return f"the same answer to {measured.same:.1f} % of {images}"
    return f"top-1 {judged(other.top1 - one.top1, measured.top1_error)}, on {images}"
