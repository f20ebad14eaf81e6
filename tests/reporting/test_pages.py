"""Pages of HTML: whole, self-contained, named for those who do not see them, and safe whatever a run is called."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from cnncompress.latency.setting import TimingSetting
from cnncompress.latency.timed import Latency
from cnncompress.reporting import LayerRow, Report, Row, render
from cnncompress.reporting.curve import Measured, Point
from cnncompress.reporting.evidence import Epoch, Evidence
from cnncompress.reporting.exploration import Exploration, render_exploration
from cnncompress.reporting.exploration_page import exploration_picture
from cnncompress.reporting.inspection import Inspected, inspection_page
from cnncompress.reporting.layer_picture import layer_picture, of_network, of_plan
from cnncompress.reporting.page import breakable
from cnncompress.reporting.palette import BEHIND, DARK, LIGHT, contrast
from cnncompress.reporting.report_page import report_page
from cnncompress.reporting.warnings import warnings_of
from tests.reporting.pages import look_at

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
LATENCY = Latency(8.0, 7.0, 9.5, TimingSetting(dtype="float32", threads=2, memory_format="contiguous"))
ORIGINAL = Row("net", "original", 2_000_000, 4_000_000_000, 8_000_000, 90.0, 99.5, 2000, LATENCY)
SMALL = replace(
    *(ORIGINAL,),
    name="net macs=0.5",
    kind="decomposed",
    params=500_000,
    macs=2_000_000_000,
    top1=89.5,
    top1_error=0.4,
    latency=replace(LATENCY, median=6.0, original=8.0),
)
LAYER = LayerRow("features.0", "spatial-svd", (5,), (1792, 1069), (1000, 600), 0.03125, "3×3 3→64", 0.002)
KEPT = {"head": "the budget is met with less loss of accuracy when this layer stays"}
INFO = {"versions": {"torch": "2.11"}, "command": ["cnncompress", "decompose", "a net"], "seed": 0, "created": "today"}
PLAN = {"rises": {"features.0": 0.002}, "achieved": {"macs": 0.5, "latency": 0.8}}
EPOCHS = (Epoch(0, 80.0, 0.7, None), Epoch(1, 85.0, 0.5, 0.6), Epoch(2, 86.0, 0.4, 0.5))


def whole(name="net macs=0.5", path="runs/net"):
    report = Report([ORIGINAL, replace(SMALL, name=name)], [LAYER], dict(KEPT), ["A note."])
    return report, [Evidence(path, report, INFO, PLAN, EPOCHS)]


def test_a_page_has_all_that_a_run_holds():
    seen = look_at(report_page(*whole()))
    assert seen.wrong == []
    text = " ".join(" ".join(seen.text).split())
    assert "Half the MACs, 0.75 of the time in torch, top-1 90.0 → 89.5 (−0.5 ± 0.4, within noise)." in text
    for words in ("0.50×", "4.000G → 2.000G", "features.0", "spatial-svd", "A note.", "cnncompress decompose 'a net'"):
        assert words in text
    for words in ("torch 2.11", "0.002 nats before correction", "−0.50 ± 0.40 points, within noise", "0.750"):
        assert words in text
    charts = [a["aria-label"] for a in seen.named("svg") if a.get("role") == "img"]
    assert any("Top-1 against MACs" in name and "net macs=0.5: 2.000G MACs, top-1 89.50 %" in name for name in charts)
    assert any("top-1 % by epoch" in name and "from 80 to 86" in name for name in charts)


def test_several_runs_on_one_page():
    report, (one,) = whole()
    seen = look_at(report_page(report, [one, replace(one, path="runs/other")]))
    assert seen.wrong == []


@pytest.mark.parametrize("name", [EVIL, "\u202eevil\x1b[31m", "{{ 7 * 7 }}"])
def test_a_name_is_text_whatever_is_in_it(name):
    report, evidence = whole(name, name)
    report.layers[0] = replace(LAYER, layer=name, method=name, was=name)
    report.kept[name] = name
    report.notes.append(name)
    evidence = [
        replace(evidence[0], info={**INFO, "command": [name], "versions": {name: name}, "data": {"spec": name}})
    ]
    for page in (report_page(report, evidence), render(report, "html")):
        seen = look_at(page)
        assert seen.wrong == []
        assert not seen.named("img")
        assert "\x1b" not in page
        assert "\u202e" not in page
        assert "49" not in name or "{{ 7 * 7 }}" in "".join(seen.text)


def test_an_exploration_as_a_page():
    points = [Point("macs", s, {"macs": s, "params": s}, 0.1 / s, 3) for s in (0.3, 0.5, 0.7)]
    points[0] = replace(points[0], measured=Measured(replace(SMALL, name=EVIL), 0.3))
    points[1] = replace(points[1], measured=Measured(SMALL, 0.2))
    found = Exploration(EVIL, tuple(points), ORIGINAL, ("cnncompress", "decompose", EVIL), (EVIL,))
    seen = look_at(render_exploration(found, "html"))
    assert seen.wrong == []
    text = " ".join(seen.text)
    assert "Within 0.5 points: macs=0.3, measured −0.50 ± 0.40 points, within noise." in text
    assert "--budget macs=0.3" in text
    picture = look_at("<h1></h1>" + exploration_picture(found))
    assert picture.wrong == []
    assert any("macs=0.3: top-1 89.50 %" in (a.get("aria-label") or "") for a in picture.named("svg"))
    unmeasured = replace(found, points=tuple(replace(point, measured=None) for point in points))
    assert "Predicted rise of the loss" in exploration_picture(unmeasured)


def test_the_layers_of_a_network_as_a_page_and_a_picture():
    layers = [
        Inspected(EVIL, "3×3 3→64", 100, 3000, ["svd", "cp"], 8, {0.5: 1, 0.9: 2, 0.99: 4}),
        Inspected("b", "3×3", 200, 1000, [], note=EVIL),
    ]
    seen = look_at(inspection_page(EVIL, EVIL, layers))
    assert seen.wrong == []
    text = " ".join(seen.text)
    assert "Half of the MACs are in 1 layer of 2." in text
    assert "75.0 %" in text
    assert "A: svd, cp" in text
    picture = look_at("<h1></h1>" + layer_picture(EVIL, of_network(layers)))
    assert picture.wrong == []
    assert "3.000K" in picture.text
    assert "ms" not in picture.text


def test_a_timed_network_has_its_times_and_its_energies():
    layers = [
        Inspected("a", "3×3 3→64", 100, 3000, ["svd"], 8, {0.9: 2}, ms=1.25, energies=((1, 0.5), (2, 0.9), (8, 1.0))),
        Inspected("b", "3×3", 200, 1000, [], note="it stays"),
    ]
    seen = look_at(inspection_page("net", "", layers))
    assert seen.wrong == []
    assert "1.250" in seen.text
    assert "a: rank 1 to 8, 90 % at 2" in [a.get("aria-label") for a in seen.named("svg")]
    assert {"ms", "1.250"} <= set(look_at("<h1></h1>" + layer_picture("net", of_network(layers))).text)


def test_a_plan_as_a_picture_has_two_bars_for_each_cost():
    """The longest bar of each cost has 200 pixels; those of before and after are 1792 and 1069 parameters."""
    picture = look_at("<h1></h1>" + layer_picture("net", of_plan([LAYER])))
    assert picture.wrong == []
    assert {"features.0", "spatial-svd 5", "600", "1.069K"} <= set(picture.text)
    bars = [(a["class"], float(a["width"])) for a in picture.named("rect")[1:]]
    assert bars == [("before", 200.0), ("after", 120.0), ("before", 200.0), ("after", round(200 * 1069 / 1792, 1))]


def test_names_may_be_broken_after_their_dots_and_numbers_not():
    assert breakable("features.7.conv<: 74.3 %.") == "features.<wbr>7.<wbr>conv&lt;: 74.3 %."


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_every_colour_is_told_from_what_is_behind_it(palette):
    """WCAG 2.2: 4.5 for text, which all of them are held to."""
    for name, colour in palette.items():
        if name not in (*BEHIND, "line"):
            assert min(contrast(colour, palette[behind]) for behind in BEHIND) >= 4.5, name
    assert min(contrast(palette["line"], palette[behind]) for behind in BEHIND) >= 3


def test_contrast_is_that_of_the_guidelines():
    """Black on white is 21; #777777 on white is known to be just below 4.5."""
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


def test_warnings_say_what_the_numbers_are_not():
    slow = replace(SMALL, latency=replace(LATENCY, median=9.0, original=8.0), top1_error=None, images=40)
    told = " ".join(warnings_of(Report([replace(ORIGINAL, images=40), slow], notes=["it is a little optimistic", "x"])))
    assert "net macs=0.5 is not faster in torch: it takes 1.12 of the time." in told
    assert "`report --data` measures it with its standard error" in told
    assert "40 images only" in told
    assert told.endswith("it is a little optimistic")
    nothing = [replace(row, top1=None, images=None) for row in (ORIGINAL, SMALL)]
    assert warnings_of(Report(nothing)) == [
        "No accuracy was measured: nothing here says what the compression cost. Give --data."
    ]


def test_a_report_of_nothing_but_an_original_is_a_page():
    bare = replace(ORIGINAL, top1=None, images=None, latency=None)
    assert look_at(report_page(Report([bare]))).wrong == []
    infinite = Report([bare, replace(SMALL, top1=None)], [replace(LAYER, error=math.inf, rise=math.nan)])
    assert look_at(report_page(infinite)).wrong == []
