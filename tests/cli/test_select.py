"""Fewer channels, by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.mark.slow
def test_select_by_rank_goes_all_the_way(done):
    text = done(
        "decompose", "digits_vgg", "--data", "digits", "--method", "select", "--rank", "0.75", "--out", "narrow"
    )
    assert "select rank 0.75 kronecker" in text
    plan = json.loads(Path("narrow", "plan.json").read_text())
    widths = {name: (n["now"]["in_channels"], n["now"]["out_channels"]) for name, n in plan["narrowed"].items()}
    assert not plan["layers"]
    assert (3, 12) in widths.values()  # the first convolution: all of its inputs, three quarters of 16 outputs
    assert sum(1 for a, b in widths.values() if (a, b) == (12, 12)) == 1
    assert list(plan["channels"].values()) == [12, 12, 24, 24, 48, 48]
    report = json.loads(done("report", "narrow", "--format", "json"))
    original, narrow = report["rows"]
    assert narrow["macs"] < 0.62 * original["macs"]
    assert narrow["top1"] > original["top1"] - 15
    assert {layer["method"] for layer in report["layers"]} == {"select"}
    assert f"top-1 {narrow['top1']:.2f} %" in done("evaluate", "narrow", "--data", "digits")
    tuned = done("finetune", "narrow", "--data", "digits", "--lr", "0.005", "--out", "tuned")
    assert "saved in tuned" in tuned
    done("export", "narrow", "--format", "pt2", "--output", "narrow.pt2")
    again = done("decompose", "digits_vgg", "--data", "digits", "--plan", "narrow/plan.json", "--out", "again")
    assert "saved in again" in again
    assert json.loads(Path("again", "plan.json").read_text())["narrowed"] == plan["narrowed"]


def test_a_dry_run_tells_what_the_network_would_cost(done):
    arguments = ["decompose", "digits_vgg", "--method", "select", "--rank", "0.5"]
    dry = done(*arguments, "--dry-run")
    done(*arguments, "--out", "half")
    row = json.loads(done("report", "half", "--format", "json"))["rows"][1]
    shown = next(line for line in dry.splitlines() if "select rank 0.5" in line)
    assert f"{row['params'] / 1e3:.1f}K" in shown or f"{row['params'] / 1e3:.2f}K" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "select:K=3"], "select takes no options"),
        (["--method", "select", "--rank", "0.5", "--metric", "mahalanobis", "--data", "digits"], "second moments"),
        (["--method", "select+svd", "--rank", "0.5"], "only a budget"),
    ],
)
def test_what_select_does_not_take_is_said_in_a_line(refused, arguments, words):
    assert words in refused("decompose", "digits_vgg", *arguments, code=2)
