"""What `decompose` records of a plan: costs before it is carried out, the metric that its chains were fitted in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cnncompress.api import run_decompose
from cnncompress.config import DecomposeSettings
from tests.pipeline.networks import write_factory, write_images


@pytest.fixture
def decomposed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = write_factory(tmp_path)

    def run(**settings):
        asked = {"model": model, "input_size": 8, "out": "run", "force": True, "layers": ["two"]}
        return run_decompose(DecomposeSettings.model_validate(asked | settings), [])

    return run


@pytest.mark.parametrize(
    "method", ["monochromatic:colours=2", "bicluster-svd:G=2,H=2,K1=1,K2=1", "root:groups=2", "spatial-svd:K=2"]
)
def test_a_dry_run_costs_what_the_network_will(decomposed, method):
    """Permutations count too: eight bytes a channel."""
    planned, done = decomposed(method=method, dry_run=True), decomposed(method=method)
    assert done.plan.layers
    rows = [[(row.params, row.macs, row.size_bytes) for row in each.report.rows] for each in (planned, done)]
    assert rows[0] == rows[1]


def test_a_network_from_scratch_says_so_and_tells_no_error(decomposed):
    done = decomposed(method="channel-svd:K=2", init="scratch")
    assert any("random kernels: train the network with finetune" in note for note in done.report.notes)
    assert [row.error for row in done.report.layers] == [None]
    assert json.loads(Path("run/plan.json").read_text())["layers"]["two"]["rank"] == [2]


@pytest.mark.parametrize(("images", "metric"), [(False, "frobenius"), (True, "kronecker")])
def test_a_plan_from_a_file_records_the_metric_that_was_used(decomposed, tmp_path, images, metric):
    layers = {"two": {"method": "spatial-svd", "rank": [2]}}
    Path("plan.json").write_text(json.dumps({"metric": "frobenius", "layers": layers, "kept": {}}))
    data = write_images(tmp_path / "images") if images else None
    done = decomposed(plan="plan.json", data=data)
    assert json.loads(Path("run/plan.json").read_text())["metric"] == metric
    notes = [note for note in done.report.notes if note.startswith("predicted rise")]
    assert len(notes) == images
    assert all("not comparable with a budget" in note for note in notes)


def test_a_plan_made_under_another_metric_has_the_biases_that_its_own_needs(decomposed, tmp_path):
    layers = {"two": {"method": "spatial-svd", "rank": [2]}}
    Path("plan.json").write_text(json.dumps({"metric": "frobenius", "layers": layers, "kept": {}}))
    data = write_images(tmp_path / "images")
    done = decomposed(plan="plan.json", data=data, metric="data-covariance", correct="none")
    assert (done.plan.metric, done.plan.layers["two"].chain[-1].bias) == ("data-covariance", True)


def test_layers_of_two_metrics_are_told_apart(decomposed, tmp_path):
    decomposed(rank=2)
    data = write_images(tmp_path / "images")
    again = {"model": "run", "input_size": None, "layers": ["one"], "out": "again", "trust_code": True}
    done = decomposed(rank=2, data=data, metric="data-covariance", **again)
    assert (
        "relative errors are in data-covariance, those of layers replaced in the earlier run in frobenius"
        in done.report.notes
    )
