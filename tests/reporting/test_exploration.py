"""An exploration on the terminal: a table that fits, what stands out, and commands as a shell takes them."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest

from cnncompress.latency.setting import TimingSetting
from cnncompress.latency.timed import Latency
from cnncompress.reporting.curve import Measured, Point
from cnncompress.reporting.exploration import Exploration, commands, marks, picks, records, render_exploration
from cnncompress.reporting.layout import widest
from cnncompress.reporting.rows import Row

ORIGINAL = Row("net", "original", 1000, 1_000_000, 4000, 90.0, 99.0, 5000)
TIME = Latency(6.0, 5.9, 6.2, TimingSetting("onnxruntime", dtype="float32", threads=2), 8.0)
SMALL = replace(ORIGINAL, name="net macs=0.5", kind="decomposed", macs=500_000, top1=89.7, top1_error=0.2, latency=TIME)
COMMAND = ("cnncompress", "decompose", "my net.py:build", "--data", "photos/")


def exploration(cost="macs"):
    rises = {0.125: None, 0.25: 0.9, 0.5: 0.1, 0.75: 0.05, 0.9: 0.01}
    points = [Point(cost, share, {"macs": share, "params": share}, rise, 4) for share, rise in rises.items()]
    points[0] = replace(points[0], refused="no plan meets the budget", layers=0)
    points[2] = replace(points[2], measured=Measured(SMALL, 0.123))
    points[1] = replace(points[1], measured=Measured(replace(SMALL, top1=85.0, top1_error=0.5), 1.23))
    return Exploration("my/net", tuple(points), ORIGINAL, COMMAND, ("A note.",))


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_table_fits(width):
    lines = render_exploration(exploration(), width=width).splitlines()
    assert widest("\n".join(line for line in lines if not line.startswith("cnncompress "))) <= width
    (line,) = (line for line in lines if line.startswith("macs=0.5 "))
    assert "−0.30 ± 0.20" in line
    assert "0.750" in line  # 6 of 8 ms


def test_what_stands_out():
    """At 0.5, 1 − x − y is 1 − 0.38 − 0.10, the most; from 0.5 to 0.25 there is nothing between."""
    (curve,) = exploration().curves
    assert [pick.words for pick in picks(curve)] == [
        "Knee of the predicted curve: macs=0.5, measured −0.30 ± 0.20 points, within noise.",
        "Within 0.5 points: macs=0.5, measured −0.30 ± 0.20 points, within noise.",
        "Within 1 point: macs=0.5, measured −0.30 ± 0.20 points, within noise.",
        "Within 2 points: macs=0.5, measured −0.30 ± 0.20 points, within noise.",
    ]
    assert list(marks(curve).values()) == ["knee ≤0.5"]


def test_an_estimate_is_called_one_and_nothing_is_said_where_nothing_is_known():
    found = exploration()
    worse = replace(found.points[2], measured=Measured(replace(SMALL, top1=88.0), 0.1))
    (curve,) = replace(found, points=(*found.points[:2], worse, *found.points[3:])).curves
    words = [pick.words for pick in picks(curve)]
    assert words[1] == "Within 0.5 points: macs=0.9, estimated −0.20 points from its measured neighbours."
    assert words[2] == "Within 1 point: macs=0.75, estimated −1.00 points from its measured neighbours."
    (curve,) = replace(found, points=tuple(replace(point, measured=None) for point in found.points)).curves
    assert [pick.words for pick in picks(curve)] == ["Knee of the predicted curve: macs=0.5, not measured."]


@pytest.mark.parametrize(("cost", "slower"), [("macs", True), ("params", True), ("latency", False)])
def test_a_command_can_be_pasted(cost, slower):
    ((words, command),) = commands(exploration(cost))
    assert words == f"{cost}=0.5, knee of the predicted curve, within 0.5 points, within 1 point, within 2 points"
    slow = ["--allow-slower"] if slower else []
    assert shlex.split(command) == [*COMMAND, "--budget", f"{cost}=0.5", *slow, "--out", f"runs/my_net-{cost}-0.5"]


def test_records_have_everything_in_numbers():
    first, second, third, *_ = records(exploration())
    assert (first["refused"], first["predicted_rise"], first["top1"]) == ("no plan meets the budget", None, None)
    assert (second["divergence"], second["top1_change"], second["top1_error"]) == (1.23, -5.0, 0.5)
    assert (third["latency_median_ms"], third["latency_ratio"], third["marks"]) == (6.0, 0.75, "knee ≤0.5")
