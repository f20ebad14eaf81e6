"""Several runtimes side by side, and the sentence that they come to."""

from __future__ import annotations

import pytest

from cnncompress.latency.setting import PRECISIONS, TimingSetting
from cnncompress.latency.timed import Latency
from cnncompress.reporting.times import Beside, headline, time_table


def timed(label, now, before=None):
    """A network and its original in a runtime; the percentiles of each are a tenth apart from its median."""
    runtime, _, precision = label.partition(":")
    setting = TimingSetting(runtime, PRECISIONS[precision or "fp32"], "cpu", 1, 2)
    took = [None if ms is None else Latency(ms, 0.9 * ms, 1.1 * ms, setting) for ms in (now, before)]
    return Beside(took[0], before, took[1])


@pytest.mark.parametrize(
    ("times", "said"),
    [
        (
            [timed("torch", 20, 24), timed("onnxruntime", 8, 10)],
            "onnxruntime alone is 2.4 times faster than eager PyTorch; this plan adds 1.25.",
        ),
        (
            [timed("openvino", 5, 10), timed("torch", 20, 30), timed("openvino:int8", 2.5, 4)],
            "openvino alone is 3.0 times faster than eager PyTorch; int8 adds 2.5; this plan adds 1.60.",
        ),
        (  # where the original is the fastest of all
            [timed("torch", 20, 30), timed("openvino", 6, 5), timed("onnxruntime", 5.5, 12)],
            "openvino alone is 6.0 times faster than eager PyTorch; this plan is 1.20 times slower there.",
        ),
        (
            [timed("torch", 20, 30), timed("openvino:int8", 5, 5)],
            "openvino:int8 alone is 6.0 times faster than eager PyTorch; this plan adds nothing to that.",
        ),
        (
            [timed("torch", 5, 10), timed("onnxruntime", 12, 20)],
            "eager PyTorch is the fastest of these runtimes; this plan adds 2.0.",
        ),
        (
            [timed("onnxruntime", 5, 10), timed("onnxruntime:int8", 4, 5)],
            "onnxruntime:int8 alone is 2.0 times faster than onnxruntime; this plan adds 1.25.",
        ),
        ([timed("torch", 20), timed("openvino", 8)], "openvino is 2.5 times faster than eager PyTorch."),
        ([timed("torch", 20), timed("openvino", 21)], "eager PyTorch is the fastest of these runtimes."),
    ],
)
def test_the_sentence(times, said):
    assert headline("this plan", times) == said


def test_the_sentence_where_a_precision_is_slower():
    """The fastest counts, whatever was asked for beside it."""
    times = [timed("torch", 20, 24), timed("openvino", 5, 8), timed("openvino:int8", 9, 10)]
    assert headline("a", times) == "openvino alone is 3.0 times faster than eager PyTorch; a adds 1.60."


def test_the_table():
    headers, rows, align = time_table({"a": [timed("torch", 20, 30), timed("openvino", 6, 5)]})
    assert headers == ["runtime", "original ms [p10–p90]", "compressed ms [p10–p90]", "share", "alone", "together"]
    assert rows == [
        ["torch", "30 [27–33]", "20 [18–22]", "0.67×", "1.00", "1.50"],
        ["openvino", "5 [4.5–5.5]", "6 [5.4–6.6]", "1.20×", "6.00", "5.00"],
    ]
    assert len(align) == len(headers)


def test_the_table_of_several_networks_names_them():
    headers, rows, _ = time_table({name: [timed("torch", 20, 30)] for name in "ab"}, percentiles=False)
    assert headers[:3] == ["timed", "runtime", "original ms"]
    assert [row[:4] for row in rows] == [[name, "torch", "30", "20"] for name in "ab"]


def test_the_table_without_originals():
    headers, rows, _ = time_table({"a": [timed("torch", 20), timed("openvino", 8)]})
    assert headers == ["runtime", "network ms [p10–p90]", "speed-up"]
    assert [row[2] for row in rows] == ["1.00", "2.50"]
