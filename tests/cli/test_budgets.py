"""Budgets, plans from files and corrections on the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import cnncompress as cc
from cnncompress.network.memory_format import memory_format_of
from tests.cli.conftest import listing
from tests.timing import took

FAST = ("--data", "digits", "--calibration-images", "32", "--layers", "features.1*")


def rows(run="run"):
    """The rows of a run's measurements."""
    return json.loads(Path(run, "metrics.json").read_text())["rows"]


@pytest.mark.slow
def test_a_budget_is_met_without_data(done):
    text = done("decompose", "digits_vgg", "--budget", "macs=0.5", "--budget", "params=0.4", "--out", "run")
    before, after = rows()
    assert 0.45 < after["macs"] / before["macs"] <= 0.5
    assert after["params"] / before["params"] <= 0.4
    plan = json.loads(Path("run/plan.json").read_text())
    assert plan["metric"] == "frobenius"
    assert plan["achieved"]["macs"] == pytest.approx(after["macs"] / before["macs"])
    assert "(budget 0.5)" in text
    assert set(plan["rises"]) == set(plan["layers"])


@pytest.mark.slow
def test_a_budget_with_images_corrects(done):
    done("decompose", "digits_vgg", "--budget", "macs=0.7", *FAST, "--out", "run")
    before, after = rows()
    assert after["macs"] <= 0.7 * before["macs"]
    plan = json.loads(Path("run/plan.json").read_text())
    assert plan["metric"] == "kronecker"
    assert all(layer.startswith("features.1") for layer in plan["layers"])
    assert not any("is refitted" in why for name, why in plan["kept"].items() if not name.startswith("features.1"))
    assert after["top1"] > before["top1"] - 3
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(cc.load("run")(image), cc.load("run")(image))


def test_a_convolution_that_a_plan_keeps_is_fitted_and_loads_again(done):
    """Only the first inner layer is replaced; those after it may change too unless they are left out."""
    original = cc.load_model("digits_vgg").model.state_dict()
    Path("plan.json").write_text(
        json.dumps(
            {"metric": "frobenius", "layers": {"features.3": {"method": "spatial-svd", "rank": [4]}}, "kept": {}}
        )
    )
    common = ("--data", "digits", "--calibration-images", "32", "--plan", "plan.json", "--correct", "refit")
    text = done("decompose", "digits_vgg", *common, "--skip", "features.14", "--out", "run")
    assert "its kernel is refitted" in text
    state = cc.load("run").state_dict()
    assert not torch.equal(state["features.7.weight"], original["features.7.weight"])
    assert torch.equal(state["features.14.weight"], original["features.14.weight"])
    assert torch.equal(state["features.0.weight"], original["features.0.weight"])
    done("evaluate", "run", "--data", "digits")


@pytest.mark.few(1)
@pytest.mark.parametrize(("options", "kept_in"), [((), "channels_last"), (("--memory-format", "contiguous"), None)])
@pytest.mark.parametrize("method", ["cp", "spatial-svd"])
def test_a_network_is_kept_in_the_memory_format_it_is_fastest_in(done, monkeypatch, method, options, kept_in):
    def times(models, example, setting):
        slow = {name: memory_format_of(model) == "contiguous" for name, model in models.items()}
        return {name: took(2.0 if s else 1.0) for name, s in slow.items()}

    monkeypatch.setattr("cnncompress.pipeline.timing.latency", times)
    budget = ("--budget", "macs=0.9", "--method", method, "--layers", "features.3")
    text = done("decompose", "digits_vgg", *budget, *options, "--out", "run")
    plan = json.loads(Path("run/plan.json").read_text())
    assert plan["layers"]["features.3"]["method"] == method
    assert plan["memory_format"] == (kept_in or "contiguous")
    assert ("saved in the memory format channels_last, in which it takes 0.50 of its time" in text) == bool(kept_in)
    assert memory_format_of(cc.load("run")) == plan["memory_format"]


def test_dry_run_of_a_budget_tells_the_plan(done):
    text = done("decompose", "digits_vgg", "--budget", "macs=0.6", "--dry-run")
    assert listing() == []
    assert "predicted rise" in text
    assert re.search(r"the plan leaves 0\.(5[0-9]{3}|6000) of the MACs \(budget 0\.6\)", text)


def test_a_plan_edited_by_hand(done, refused):
    done("decompose", "digits_vgg", "--rank", "8", "--layers", "features.1*", "--out", "run")
    values = json.loads(Path("run/plan.json").read_text())
    values["layers"]["features.10"]["rank"] = [5]
    del values["layers"]["features.14"]
    values["layers"]["features.17"] = {"method": "channel-svd", "rank": [12]}
    Path("edited.json").write_text(json.dumps(values))
    done("decompose", "digits_vgg", "--plan", "edited.json", "--out", "edited")
    plan = json.loads(Path("edited/plan.json").read_text())
    assert {n: (p["method"], p["rank"]) for n, p in plan["layers"].items()} == {
        "features.10": ("spatial-svd", [5]),
        "features.17": ("channel-svd", [12]),
    }
    assert plan["kept"]["features.14"] == "not in the plan"
    assert rows("edited")[1]["macs"] != rows("run")[1]["macs"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"features.99": {"method": "svd", "rank": [1]}}, "no layer 'features.99'"),
        ({"features.10": {"method": "svd", "rank": [4]}}, "channel-svd or spatial-svd"),
        ({"features.10": {"method": "spatial-svd", "rank": [96]}}, "would not be cheaper"),
        ({"features.10": {"method": "spatial-svd", "rank": [0]}}, "wrong at layers.features.10.rank"),
        ({"features.10": {"method": "spatial-svd"}}, "lacks layers.features.10.rank"),
        ({"features.10": {"method": "spatial", "rank": [4]}}, "spatial-svd"),
        ({"features.10": {"method": "spatial-svd", "rank": [4], "lowering": "fast"}}, "features.10"),
        ({"features.10": {"method": "spatial-svd", "rank": [4], "layer": {"kind": "linear", "in_channels": 3,
          "out_channels": 4}}}, "lacks layers.features.10.layer.kernel_size"),
        (3, "is not a plan"),
    ],
)  # fmt: skip
def test_plans_that_do_not_fit(change, words, cli, refused):
    Path("plan.json").write_text(json.dumps({"metric": "frobenius", "layers": change, "kept": {}}))
    assert words in refused("decompose", "digits_vgg", "--plan", "plan.json", code=2)


@pytest.mark.slow
def test_max_drop(done):
    text = done("decompose", "digits_vgg", "--max-drop", "1.5", *FAST, "--out", "run")
    before, after = rows()
    assert before["top1"] - after["top1"] <= 1.5
    assert after["macs"] < 0.8 * before["macs"]
    assert "points of top-1 lost at" in text


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--budget", "macs"], "is not a budget such as macs=0.5"),
        (["--budget", "macs=half"], "is not a budget"),
        (["--budget", "macs=1.5"], "(0, 1]"),
        (["--budget", "flops=0.5"], "macs, params, latency"),
        (["--budget", "macs=0.01"], "no plan meets the budget macs=0.01"),
        (["--budget", "macs=0.5", "--rank", "8"], "exclude each other"),
        (["--budget", "macs=0.5", "--max-drop", "1", "--data", "digits"], "exclude each other"),
        (["--max-drop", "1"], "--max-drop needs images"),
        (["--rank", "8", "--correct", "refit"], "needs images"),
        (["--budget", "macs=0.5", "--reconstruct", "10"], "needs images"),
        (["--rank", "8", "--multiple", "8"], "--multiple is for budgets"),
        (["--plan", "nothing.json"], "nothing.json"),
        (["--budget", "macs=0.5", "--multiple", "0"], "--multiple"),
        (["--max-drop", "1", "--data", "digits", "--dry-run"], "leave out --dry-run"),
        (["--max-drop", "-1", "--data", "digits"], "--max-drop"),
    ],
)
def test_requests_that_make_no_sense(args, words, refused):
    assert words in refused("decompose", "digits_vgg", *args, code=2)
