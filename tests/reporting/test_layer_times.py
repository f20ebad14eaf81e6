"""Where the time of a network goes, layer by layer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cnncompress.reporting import Report
from cnncompress.reporting.layer_times import LayerTime, LayerTimes, time_section
from tests.timing import took

CHAIN = LayerTime("features.0", "3×3 3→8", "svd 4", 1.0, 3.0, (3.5, 1.25))
SAME = LayerTime("head", "8→2", "", 2.0, 2.0)
TIMES = LayerTimes("net", replace(took(6.0), original=8.0), (SAME, CHAIN))


def test_what_no_layer_takes_is_the_rest():
    """8 - 3 - 2 milliseconds of the original, 6 - 1 - 2 now; noise may leave less than nothing, which is none."""
    assert TIMES.rest() == (3.0, 3.0)
    assert replace(TIMES, latency=took(2.5)).rest() == (None, 0.0)


def test_they_are_stored_and_read():
    assert Report.from_json(Report(layer_times=[TIMES]).to_json()).layer_times == [TIMES]


def test_the_slowest_layers_come_first_with_what_was_predicted():
    section = time_section([TIMES], "")
    (table,) = section.tables
    first, second, rest = table.rows
    assert "a batch of 1 in torch, cpu, 1 thread, float32, contiguous" in table.caption
    assert (first[0], first[2:]) == ("features.0", ["16.7 %", "3.500 → 1.250 0.36×", "3×3 3→8", "svd 4"])
    assert first[1].startswith("3.000 → 1.000 0.33×<svg")
    assert (second[0], second[-1]) == ("head", "the same")
    assert (rest[0], rest[2]) == ("all else", "50.0 %")
    assert list(table.headers) == ["layer", "ms", "share of all", "planned ms", "was", "is"]
    plain = replace(TIMES, layers=(replace(CHAIN, planned=None),))
    assert "planned ms" not in time_section([plain], "").tables[0].headers


@pytest.mark.parametrize(("after", "said"), [(3.2, True), (3.05, False)])
def test_a_chain_that_is_slower_is_named(after, said):
    """By more than 3 %: 3.09 ms."""
    told = time_section([replace(TIMES, layers=(replace(CHAIN, after=after),))], "").sentences
    assert list(told) == [f"features.0 is slower than the layer it replaced: {after:.3f} ms for 3.000."] * said


def test_without_times_the_section_says_what_measures_them():
    section = time_section([], "cnncompress report runs/net --latency")
    assert "not measured" in section.text
    assert list(section.commands) == [("To measure them", "cnncompress report runs/net --latency")]
