"""Charts: axes with round numbers, points where their values are."""

import re
import xml.etree.ElementTree as ET

import pytest

from cnncompress.reporting.svg import Axis, Chart, Dot, Series, bars, draw, number, numbers, outline


def test_places_are_linear_or_logarithmic():
    assert Axis(0, 10, 100, 200).place(2.5) == 125
    assert Axis(1, 100, 0, 200, log=True).place(10) == 100


def test_ticks_are_round_and_within_the_axis():
    assert Axis(0.18, 0.93, 0, 1).ticks() == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert Axis(-3, 12, 0, 1).ticks() == [0, 5, 10]
    assert Axis(0.5, 30, 0, 1, log=True).ticks() == [0.5, 1, 2, 5, 10, 20]
    assert Axis(1e-6, 1e-1, 0, 1, log=True).ticks() == pytest.approx([10.0**d for d in range(-6, 0)])


def test_a_chart_is_well_formed_and_named():
    dots = (Dot(0.5, 88.0, "a <b> & c", 0.4), Dot(1.0, 90.0, "d"))
    text = draw(Chart('A "title"', "x", "y", (Series("s", dots, line=True),), "It rises."))
    root = ET.fromstring(text)
    assert root.get("aria-label") == 'A "title". It rises.'
    assert [title.text for title in root.iter("title")] == ['A "title"', "a <b> & c", "d"]
    joined = next(path for path in root.iter("path") if "joined" in path.get("class"))
    (x0, y0), (x1, y1) = re.findall(r"([\d.]+) ([\d.]+)", joined.get("d"))
    assert float(x0) < float(x1)
    assert float(y0) > float(y1)  # down the screen


def test_one_point_has_axes_of_its_own():
    for value in (0.0, 5.0):
        assert "nan" not in draw(Chart("t", "x", "y", (Series("s", (Dot(value, value, "p"),)),)))


def test_no_axis_goes_beyond_the_most_that_there_can_be():
    chart = Chart("t", "x", "y", (Series("s", (Dot(0, 99, "p"), Dot(1, 100, "q"))),), most=100)
    words = [node.text for node in ET.fromstring(draw(chart)).iter("text")]
    assert max(float(w) for w in words if re.fullmatch(r"[\d.]+", w)) <= 100


def test_bars_are_shares_of_the_most():
    assert re.findall(r'width="([\d.]+)"', bars((50, 20), 200)) == ["25.00", "10.00"]
    assert re.findall(r'width="([\d.]+)"', bars((50,), 0)) == ["0.00"]


def test_marks_differ_by_shape():
    assert len({outline(i, 0, 0) for i in range(4)}) == 4


def test_short_numbers():
    assert list(map(number, [0, 0.25, 173_400_000, 1500, 2e-6, -40])) == ["0", "0.25", "173M", "1.5K", "2e-06", "-40"]


def test_numbers_on_an_axis_differ():
    assert numbers([94.36, 94.38, 94.4]) == ["94.36", "94.38", "94.4"]
    assert numbers([1_234_000, 1_234_500]) == ["1.234M", "1.2345M"]
    assert numbers([0.2, 0.4]) == ["0.2", "0.4"]
    assert numbers([]) == []


@pytest.mark.parametrize(
    ("epochs", "shown"), [(1, ["0", "1"]), (3, ["0", "1", "2", "3"]), (40, ["0", "10", "20", "30"])]
)
def test_counts_have_no_halves(epochs, shown):
    dots = tuple(Dot(i, 50 + i / 100, "p") for i in range(epochs + 1))
    words = [node.text for node in ET.fromstring(draw(Chart("t", "x", "y", (Series("s", dots),)))).iter("text")]
    assert [w for w in words if "." not in w][: len(shown)] == shown
