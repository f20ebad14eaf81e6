import csv
import io
import json
import re
from dataclasses import replace

import pytest

from cnncompress.chains.plan import LayerPlan, Plan
from cnncompress.chains.spec import ConvSpec
from cnncompress.decompositions import get_method
from cnncompress.errors import CompressError, UsageError
from cnncompress.latency.setting import TimingSetting
from cnncompress.latency.timed import Latency
from cnncompress.network.costs import Profile
from cnncompress.reporting import FORMATS, LayerRow, Report, Row, layer_rows, merge, render

LATENCY = Latency(8.0, 7.0, 9.5, TimingSetting(dtype="float32", threads=2, memory_format="contiguous"))
ORIGINAL = Row("net", "original", 2_000_000, 4_000_000_000, 8_000_000, 90.0, 99.5, 1000, LATENCY)
SMALL = Row(
    "runs/net", "decomposed", 500_000, 1_000_000_000, 2_000_000, 88.25, 99.0, 1000, replace(LATENCY, median=6.0)
)
TUNED = replace(SMALL, name="runs/tuned", kind="finetuned", top1=89.75, top5=None, latency=None)
LAYERS = [LayerRow("features.0", "spatial-svd", (5,), (1792, 1069), (1000, 600), 0.03125, "3×3 3→64")]
KEPT = {f"block.{i}": f"svd at rank 8 would not be cheaper: {i},000 MACs for {i}" for i in range(1, 7)}


def measured(**change):
    """The latency in another setting."""
    return replace(LATENCY, setting=replace(LATENCY.setting, **change))


@pytest.fixture
def report():
    kept = KEPT | {"dw": "depthwise: nothing to share"}
    return Report([ORIGINAL, SMALL, TUNED], list(LAYERS), kept, ["Calibrated on 256 images."])


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_json_follows_the_schema(report):
    found = json.loads(render(report, "json"))
    assert list(found) == ["schema", "rows", "layers", "kept", "notes"]
    assert found["schema"] == 1
    types = {"name": str, "kind": str, "params": int, "macs": int, "size_bytes": int}
    types |= {"top1": float, "top5": float, "images": int, "other_macs": int, "data": str, "top1_error": float}
    types["latency_ms"] = dict
    for row in found["rows"]:
        assert list(row) == list(types)
        assert all(row[key] is None or type(row[key]) is kind for key, kind in types.items())
    assert found["rows"][0]["latency_ms"] == {
        "median": 8.0,
        "p10": 7.0,
        "p90": 9.5,
        "batch": 1,
        "threads": 2,
        "device": "cpu",
        "dtype": "float32",
        "memory_format": "contiguous",
        "runtime": "torch",
        "original": None,
    }
    assert (found["rows"][2]["top5"], found["rows"][2]["latency_ms"]) == (None, None)
    layer = {"layer": "features.0", "method": "spatial-svd", "rank": [5], "params": [1792, 1069], "macs": [1000, 600]}
    assert found["layers"] == [layer | {"error": 0.03125, "was": "3×3 3→64", "rise": None}]
    assert (found["kept"], found["notes"]) == (report.kept, report.notes)


def test_json_round_trip(report):
    last, elsewhere = measured(memory_format="channels_last"), measured(runtime="onnxruntime", memory_format="")
    report.rows[1] = replace(SMALL, other_macs=7, data="0123", top1_error=0.5).timed([last, elsewhere])
    report.layers.append(replace(LAYERS[0], rise=0.25))
    assert Report.from_json(json.loads(render(report, "json"))) == report


def test_json_of_an_earlier_version(report):
    values = json.loads(render(report, "json"))
    del values["notes"]
    for row in values["rows"]:
        del row["other_macs"], row["data"], row["top1_error"]
        if row["latency_ms"]:
            for key in ("memory_format", "original", "runtime"):
                del row["latency_ms"][key]
    for layer in values["layers"]:
        del layer["was"], layer["rise"]
    again = Report.from_json(values)
    assert [row.params for row in again.rows] == [row.params for row in report.rows]
    assert "unknown memory format" in render(again)


def test_json_has_no_nan():
    row, layer = replace(ORIGINAL, top1=float("nan")), replace(LAYERS[0], error=float("inf"))
    found = json.loads(render(Report([row], [layer]), "json"), parse_constant=pytest.fail)
    assert (found["rows"][0]["top1"], found["layers"][0]["error"]) == (None, None)


@pytest.mark.parametrize(
    "values",
    [
        [],
        {},
        {"schema": 2, "rows": [], "layers": [], "kept": {}},
        {"schema": 1, "rows": []},
        {"schema": 1, "rows": [{"name": "x", "kind": "original"}], "layers": [], "kept": {}},
        {"schema": 1, "rows": [{"name": "x", "kind": "other"}], "layers": [], "kept": {}},
        {"schema": 1, "rows": [], "layers": [{"layer": "x"}], "kept": {}},
        {"schema": 1, "rows": 3, "layers": [], "kept": {}},
    ],
)
def test_json_that_is_no_report(values):
    with pytest.raises(CompressError) as error:
        Report.from_json(values)
    assert "\n" not in str(error.value)


def test_csv_parses_back(report):
    rows = list(csv.DictReader(io.StringIO(render(report, "csv"))))
    assert [row["name"] for row in rows] == ["net", "runs/net", "runs/tuned"]
    small = rows[1]
    assert (small["params"], small["macs"], small["flops"]) == ("500000", "1000000000", "2000000000")
    assert [float(small[f"{key}_ratio"]) for key in ("params", "macs", "flops", "size", "latency")] == [0.25] * 4 + [
        0.75
    ]
    assert (small["latency_median_ms"], small["batch"], small["memory_format"]) == ("6.0", "1", "contiguous")
    assert (rows[2]["top5"], rows[2]["latency_median_ms"], rows[2]["latency_ratio"]) == ("", "", "")


def test_csv_of_layers(report):
    rows = list(csv.DictReader(io.StringIO(render(report, "csv", layers=True))))
    assert [row["layer"] for row in rows] == ["features.0", *report.kept]
    first = rows[0]
    assert (first["was"], first["method"], first["rank"], first["kept"]) == ("3×3 3→64", "spatial-svd", "5", "")
    assert (first["macs_before"], first["macs_after"], first["macs_ratio"]) == ("1000", "600", "0.6")
    assert (rows[-1]["method"], rows[-1]["error"], rows[-1]["kept"]) == ("", "", "depthwise: nothing to share")


def test_markdown(report):
    report.rows[1] = replace(SMALL, name="a|b")
    lines = render(report, "markdown", layers=True).splitlines()
    tables = [line for line in lines if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in tables[:5]}) == 1
    assert cells(tables[0])[2:6] == ["params", "MACs", "FLOPs", "size"]
    assert cells(tables[2])[2:] == [
        "2.000M 1.00×",
        "4.000G 1.00×",
        "8.000G 1.00×",
        "8.000MB 1.00×",
        "90.00",
        "99.50",
        "1,000",
        "8 [7–9.5] 1.00×",
    ]
    assert cells(tables[3].replace("\\|", "/"))[:4] == ["a/b", "decomposed", "500.0K 0.25×", "1.000G 0.25×"]
    assert tables[3].endswith("6 [7–9.5] 0.75× |")
    assert [cells(tables[4])[i] for i in (6, 7, 9)] == ["89.75", "–", "–"]
    assert "- Calibrated on 256 images." in lines


def test_layer_tables(report):
    text = render(report, "markdown", layers=True)
    layer = ["features.0", "3×3 3→64", "spatial-svd", "5", "1.792K → 1.069K 0.60×", "1.000K → 600 0.60×"]
    rows = [cells(line) for line in text.splitlines() if line.startswith("|")]
    assert [*layer, "0.0312"] in rows
    reason = "svd at rank 8 would not be cheaper: … MACs for …"
    assert ["block.1, block.2, block.3, block.4, … 2 more", "6", reason] in rows
    assert ["dw", "1", "depthwise: nothing to share"] in rows
    assert "features.0" not in render(report, "markdown")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.000K"),
        (999_949, "999.9K"),
        (999_960, "1.000M"),
        (15_470_264_320, "15.47G"),
        (138_357_544, "138.4M"),
        (5 * 10**15, "5000T"),
    ],
)
def test_human_numbers(value, text):
    table = render(Report([replace(ORIGINAL, params=value)]), "markdown")
    assert cells(table.splitlines()[2])[2].split()[0] == text


def test_terminal_table_lines_up(report):
    lines = render(report).partition("\n\n")[2].splitlines()
    assert len({len(line) for line in lines[:5]}) == 1
    assert lines[0].split()[:2] == ["network", "kind"]
    assert "latency" not in render(Report([TUNED])).splitlines()[0]


def test_rows_without_an_original_have_no_ratio():
    assert "×" not in render(Report([SMALL])).splitlines()[2]
    record = next(csv.DictReader(io.StringIO(render(Report([SMALL]), "csv"))))
    assert record["params_ratio"] == ""


@pytest.mark.parametrize("change", [{"batch": 8}, {"threads": 1}, {"device": "cuda:0"}, {"runtime": "other"}])
def test_no_ratio_of_latencies_under_other_conditions(change):
    other = replace(SMALL, latency=measured(**change))
    records = list(csv.DictReader(io.StringIO(render(Report([ORIGINAL, other]), "csv"))))
    assert (records[0]["latency_ratio"], records[1]["latency_ratio"]) == ("1.0", "")
    text = render(Report([ORIGINAL, other]))
    if "runtime" in change:
        assert re.search(r"^net +torch +8 \[7–9.5\] +1.00\nruns/net +other +8 \[7–9.5\] +1.00$", text, re.MULTILINE)
        return
    assert "Latency of net:" in text
    assert "Latency of runs/net:" in text


def test_several_runtimes_side_by_side():
    """A line each in a table of its own, a record each in CSV; shares are of the original in the same runtime."""
    rows = []
    for row, times in ((ORIGINAL, (8.0, 2.0)), (SMALL, (6.0, 3.0))):
        found = (measured(), measured(runtime="other", memory_format=""))
        rows.append(row.timed([replace(one, median=ms) for one, ms in zip(found, times, strict=True)]))
    text = render(Report(rows))
    assert (
        text.splitlines()[1]
        == "other alone is 4.0 times faster than eager PyTorch; this plan is 1.50 times slower there."
    )
    assert re.search(r"^torch +8 \[7–9.5\] +6 \[7–9.5\] +0.75× +1.00 +1.33$", text, re.MULTILINE)
    assert re.search(r"^other +2 \[7–9.5\] +3 \[7–9.5\] +1.50× +4.00 +2.67$", text, re.MULTILINE)
    assert "| other | " in re.sub(" +", " ", render(Report(rows), "markdown"))
    assert max(map(len, render(Report(rows), width=80).splitlines())) <= 80
    assert "runs/net is not faster than the original in other (1.50 of its latency)." in text
    assert "\nLatency: median and percentiles of a forward pass of a batch of 1 on cpu, 2 threads.\n" in text
    slower = rows[1].timed([replace(one, median=9.0) for one in rows[1].latencies])
    said = "runs/net is not faster than the original in torch (1.12 of its latency), other (4.50 of its latency)."
    assert said in render(Report([rows[0], slower]))
    records = list(csv.DictReader(io.StringIO(render(Report(rows), "csv"))))
    assert [(one["runtime"], one["latency_ratio"]) for one in records[2:]] == [("torch", "0.75"), ("other", "1.5")]
    again = merge({"a": Report(rows), "b": Report(list(rows))})
    assert again.rows[0].latencies == rows[0].latencies


def test_notes(report):
    text = render(report)
    assert "batch of 1 on cpu, 2 threads, float32, contiguous" in text
    assert "comparable" not in text
    assert "outside" not in text
    for change in ({"images": 10}, {"data": "other"}):
        rows = [replace(ORIGINAL, data="one"), replace(SMALL, data="one"), replace(TUNED, **({"data": "one"} | change))]
        assert "not comparable" in render(Report(rows))
    row = replace(ORIGINAL, name="swin", other_macs=1_000_000_000)
    assert "1.000G of swin's 4.000G MACs are outside convolution and linear layers." in render(Report([row]))


@pytest.mark.parametrize("format", FORMATS)
def test_an_empty_report_renders(format):
    assert isinstance(render(Report(), format, layers=True), str)


def test_unknown_format(report):
    with pytest.raises(UsageError, match="did you mean 'markdown'"):
        render(report, "markdwn")


def test_a_network_that_is_not_faster_says_so():
    slow = replace(SMALL, latency=replace(LATENCY, median=10.0))
    assert "runs/net is not faster than the original: 1.25 of its latency." in render(Report([ORIGINAL, slow]))
    assert "not faster" not in render(Report([ORIGINAL, SMALL]))


def test_a_change_of_accuracy_has_its_standard_error():
    said = "runs/net: top-1 −1.75 ± 0.60 points of the original's (standard error, the same 1,000 images)."
    assert said in render(Report([ORIGINAL, replace(SMALL, top1_error=0.6)]))
    assert "±" not in render(Report([ORIGINAL, SMALL]))


def test_merge_shows_the_same_original_once(report):
    other = Report([ORIGINAL, replace(SMALL, name="runs/other", params=1)], LAYERS, {"dw": "kept"}, list(report.notes))
    merged = merge({"a": report, "b": other})
    assert [row.name for row in merged.rows] == ["net", "runs/net", "runs/tuned", "runs/other"]
    assert [layer.layer for layer in merged.layers] == ["a:features.0", "b:features.0"]
    assert (merged.kept["a:dw"], merged.kept["b:dw"]) == ("depthwise: nothing to share", "kept")
    assert merged.notes == ["a, b: Calibrated on 256 images."]
    assert report.layers == LAYERS


def test_merge_compares_each_network_with_its_own_original():
    big = replace(ORIGINAL, name="big", params=50_000_000)
    first, second = Report([ORIGINAL, SMALL]), Report([big, SMALL])
    merged = merge({"a": first, "b": second, "c": first})
    assert [row.name for row in merged.rows] == ["net", "runs/net", "big", "b:runs/net"]
    records = list(csv.DictReader(io.StringIO(render(merged, "csv"))))
    assert [float(record["params_ratio"]) for record in records] == [1, 0.25, 1, 0.01]


def test_merge_shows_an_original_once_and_each_share_is_of_what_ran_beside():
    """The original took 8 ms beside the first network, and 16 on a busy machine beside the second."""
    slow = replace(ORIGINAL, latency=replace(LATENCY, median=16.0), top1=None, top5=None, images=None)
    other = replace(SMALL, name="runs/other", latency=replace(LATENCY, median=8.0))
    merged = merge({"b": Report([slow, other]), "a": Report([ORIGINAL, SMALL])})
    assert [row.name for row in merged.rows] == ["net", "runs/other", "runs/net"]
    assert (merged.rows[0].top1, merged.rows[0].latency.median) == (90.0, 16.0)
    records = list(csv.DictReader(io.StringIO(render(merged, "csv"))))
    assert [float(record["latency_ratio"]) for record in records] == [1.0, 0.5, 0.75]


def test_merge_keeps_originals_of_other_images_apart():
    other = replace(ORIGINAL, data="other", top1=80.0)
    merged = merge({"a": Report([replace(ORIGINAL, data="one"), SMALL]), "b": Report([other, TUNED])})
    assert [row.name for row in merged.rows] == ["net", "runs/net", "b:net", "runs/tuned"]


def test_merge_puts_rows_without_an_original_first():
    merged = merge({"a": Report([ORIGINAL, SMALL]), "b": Report([TUNED])})
    assert [row.name for row in merged.rows] == ["runs/tuned", "net", "runs/net"]
    assert next(csv.DictReader(io.StringIO(render(merged, "csv"))))["params_ratio"] == ""


def test_the_share_of_a_latency_is_of_the_original_that_ran_beside():
    last = replace(measured(memory_format="channels_last"), median=5.0, original=20.0)
    records = list(csv.DictReader(io.StringIO(render(Report([ORIGINAL, replace(SMALL, latency=last)]), "csv"))))
    assert float(records[1]["latency_ratio"]) == 0.25


def test_merge_of_one_is_itself(report):
    assert merge({"a": report}) is report


def test_row_of_a_profile():
    row = Row.of("net", "original", Profile(10, 20, 5, 40, (), (3, 8, 8)), top1=50.0, images=4)
    assert (row.params, row.macs, row.other_macs, row.size_bytes) == (10, 25, 5, 40)
    assert (row.top1, row.top5, row.images, row.latency) == (50.0, None, 4, None)


def test_layer_rows():
    spec = ConvSpec(8, 16, (3, 3), padding=(1, 1), bias=True)
    chain = get_method("spatial-svd").stages(spec, (2,))
    before, after = 9 * 8 * 16, 3 * 8 * 2 + 3 * 2 * 16
    plan = Plan({"conv": LayerPlan(spec, "spatial-svd", (2,), chain, (200 * before, 200 * after))})
    (row,) = layer_rows(plan, {"conv": 0.5})
    assert (row.params, row.macs) == ((before + 16, after + 16), (200 * before, 200 * after))
    assert (row.layer, row.method, row.rank, row.error, row.was) == ("conv", "spatial-svd", (2,), 0.5, "3×3 8→16")
