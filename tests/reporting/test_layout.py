"""Tables that fit the terminal."""

from dataclasses import replace

import pytest

from cnncompress.reporting import render
from cnncompress.reporting.layout import fill, fitting, named, table, terminal_width, widest
from tests.reporting.test_reporting import ORIGINAL, SMALL, report  # noqa: F401

LONG = replace(SMALL, name="wide_resnet101_2 spatial-svd rank 0.25 data-covariance", params=456_789_012)


def head_of(text):
    """The line of headers of the table of networks."""
    return next(line for line in text.splitlines() if line.startswith("network "))


@pytest.mark.parametrize("width", [80, 90, 100, 110, 120, 160])
@pytest.mark.parametrize("timed", [True, False])
def test_reports_keep_to_the_width(width, timed, report):  # noqa: F811
    report.rows.append(LONG)
    report.layers.append(replace(report.layers[0], layer="features.12.block.conv2", method="bicluster-svd", rise=0.001))
    if not timed:
        report.rows = [replace(row, latency=None) for row in report.rows]
    text = render(report, layers=True, width=width)
    assert widest(text) <= width
    for row, share in ((ORIGINAL, "1.00×"), (SMALL, "0.25×")):
        assert row.name in text
        assert share in text
    head = head_of(text)
    assert all(name in head for name in ("params", "MACs", "FLOPs", "size", "top-1 %"))
    assert ("ms" in head.split()) == timed
    assert "features.12.block.conv2" in text
    assert "depthwise: nothing to share" in text


def test_what_is_left_out_of_a_narrow_table_is_said_below(report):  # noqa: F811
    text = render(report, width=80)
    assert "images" not in head_of(text)
    assert "Accuracy on 1,000 images." in text
    assert "Accuracy on" not in render(report, width=160)


@pytest.mark.parametrize("format_", ["markdown", "csv", "json"])
def test_other_formats_have_all_columns_at_any_width(format_, report):  # noqa: F811
    assert render(report, format_, True, 40) == render(report, format_, True)


def test_ratios_stand_below_their_numbers(report):  # noqa: F811
    text = render(report, width=80)
    lines = text[text.index(head_of(text)) :].splitlines()
    assert lines[2].split()[1:4] == ["2.000M", "4.000G", "8.000G"]
    assert lines[3].split()[:4] == ["1.00×"] * 4


def test_a_table_gives_up_width_where_words_can_wrap():
    rows = [["name", "a sentence of many words that can be broken", "another of such sentences"]]
    widths = [None, 60, 60]
    assert widest(table(["a", "b", "c"], rows, "lll", widths=widths)) > 60
    for limit in (60, 50, 40):
        text = table(["a", "b", "c"], rows, "lll", widths=widths, limit=limit)
        assert widest(text) <= limit
        assert sorted(" ".join(text.split()).split())[-1] == "words"


def test_what_cannot_wrap_stays_whole():
    text = table(["a"], [["x" * 50]], "l", limit=20)
    assert "x" * 50 in text


def test_the_first_layout_that_fits_is_taken():
    layouts = [lambda: "a" * 30, lambda: "b" * 20, lambda: "c" * 10]
    assert fitting(layouts, 20) == "b" * 20
    assert fitting(layouts, 5) == "c" * 10
    assert fitting(layouts, None) == "a" * 30
    assert fill("one two", None) == "one two"


@pytest.mark.parametrize(("columns", "width"), [("80", 80), ("120", 120), ("7", 40), ("", None), ("wide", None)])
def test_the_width_is_that_of_the_terminal(columns, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    assert terminal_width() == width


NAME = "features.denseblock4.denselayer16.attention.projection.conv2"


def test_a_name_is_broken_after_dots_where_nothing_else_makes_room(report):  # noqa: F811
    report.layers.append(replace(report.layers[0], layer=NAME, method="bicluster-svd"))
    report.kept[NAME] = "depthwise: nothing to share"
    text = render(report, layers=True, width=80)
    assert widest(text) <= 80
    assert NAME not in text
    assert "features.denseblock4." in text
    assert NAME in render(report, layers=True, width=140)


def test_the_parts_of_a_broken_name_are_its_own():
    def draw(widths):
        return table(["layer", "because"], [[NAME, "one reason of several words"]], "ll", widths=widths, limit=50)

    whole = draw([None, 40])
    assert NAME in whole
    broken = named(draw, [None, 40], 50)
    assert widest(broken) <= 50
    first = [line[: line.index("  ")] if "  " in line.strip() else line for line in broken.splitlines()[2:]]
    assert "".join(first) == NAME
    assert all(part.endswith(".") for part in first[:-1])
    assert named(draw, [None, 40], None) == whole
