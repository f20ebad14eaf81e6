"""What a curve of budgets tells: the knee, what is expected between measurements, the cheapest, what to measure."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cnncompress.reporting.curve import Curve, Measured, Point, curves_of
from cnncompress.reporting.rows import Row

ORIGINAL = Row("net", "original", 100, 1000, 400, 90.0, 99.0, 1000)
SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)


def measured(point, top1, divergence=0.1):
    row = replace(ORIGINAL, kind="decomposed", top1=top1, top1_error=0.2)
    return replace(point, measured=Measured(row, divergence))


def curve(rises, top1=(), cost="macs"):
    """Points at `SHARES` with rises, and measured top-1 by place."""
    points = [Point(cost, share, {cost: share}, rise, 3) for share, rise in zip(SHARES, rises, strict=True)]
    points = [measured(p, dict(top1)[i], p.rise) if i in dict(top1) else p for i, p in enumerate(points)]
    return Curve(tuple(points), ORIGINAL)


FALLING = (1.0, 0.2, 0.1, 0.05, 0.0)


def test_the_knee_is_farthest_below_the_line_between_the_ends():
    """Scaled to [0, 1] the points are (0, 1), (.25, .2), (.5, .1), …: 1 − x − y is 0, .55, .4, .2, 0."""
    assert curve(FALLING).knee().share == 0.4


def test_a_straight_or_short_curve_has_no_knee_to_speak_of():
    assert curve([0.0] * 5).knee() is None
    two = curve(FALLING).points[:2]
    assert Curve(two, ORIGINAL).knee() is None


def test_changes_between_measurements_are_interpolated_over_the_predicted_rise():
    """Between rises 0 (no change) and 0.2 (−4 points), 0.1 is halfway; beyond the largest nothing is known."""
    found = curve(FALLING, {1: 86.0})
    assert found.expected(found.points[1]) == -4
    assert found.expected(found.points[2]) == pytest.approx(-2)
    assert found.expected(found.points[3]) == pytest.approx(-1)
    assert found.expected(found.points[0]) is None


def test_the_cheapest_within_a_loss():
    found = curve(FALLING, {1: 86.0})
    assert [found.cheapest(limit).share for limit in (0.5, 1.0, 2.0, 4.0)] == [1.0, 0.8, 0.6, 0.4]
    assert curve(FALLING).cheapest(1.0) is None


def test_the_knee_is_measured_first_and_then_what_lies_between_too_much_and_enough():
    found = curve(FALLING)
    assert found.next_to_measure().share == 0.4
    found = curve(FALLING, {1: 86.0})  # too much: the cheapest within a point is dearer
    assert found.next_to_measure().share == 0.8
    found = curve(FALLING, {1: 89.5})  # within every limit: only the cheapest may be cheaper
    assert found.next_to_measure().share == 0.2
    assert curve(FALLING, dict.fromkeys(range(5), 90.0)).next_to_measure() is None


def test_without_accuracies_measurements_are_spread():
    points = list(curve(FALLING).points)
    points[1] = replace(points[1], measured=Measured(replace(ORIGINAL, top1=None), 0.1))
    assert Curve(tuple(points), replace(ORIGINAL, top1=None)).next_to_measure().share == 1.0


def test_points_without_a_plan_or_a_change_are_not_measured():
    points = [Point("macs", 0.1, refused="no plan"), Point("macs", 1.0, {"macs": 1.0}, 0.0, 0)]
    assert Curve(tuple(points), ORIGINAL).next_to_measure() is None


def test_pairs_in_the_predicted_order_are_counted():
    points = [measured(p, 90.0, d) for p, d in zip(curve(FALLING).points[:3], (0.5, 0.1, 0.2), strict=True)]
    assert Curve(tuple(points), ORIGINAL).agreement() == (2, 3)


def test_there_is_a_curve_for_each_cost_with_the_cheapest_first():
    points = [Point("params", 0.5), Point("macs", 0.9), Point("params", 0.3)]
    assert [[p.share for p in c.points] for c in curves_of(points, None)] == [[0.3, 0.5], [0.9]]
