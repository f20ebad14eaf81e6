"""Calibration in the whole job: which images it sees, its cache in the run, what is said about it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from cnncompress.api import run_decompose
from cnncompress.cli import main
from cnncompress.config import DecomposeSettings
from cnncompress.data import load_data
from cnncompress.errors import UsageError
from cnncompress.network.preprocessing import Preprocessing
from cnncompress.network.provenance import provenance
from cnncompress.pipeline import calibration
from cnncompress.pipeline.asked import FitAsked
from cnncompress.runs import load_run


def settings(tmp_path, **changes):
    values = {
        "model": "digits_vgg",
        "data": "digits",
        "rank": 0.3,
        "layers": ["features.3", "classifier.3"],
        "metric": "data-covariance",
        "calibration_images": 48,
        "out": tmp_path / "run",
        "device": "cpu",
    }
    return DecomposeSettings.model_validate({**values, **changes})


def folder_of_images(root, per_class=6):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / name / f"{i}.png")
    return root


def test_no_image_is_both_calibrated_on_and_evaluated(tmp_path):
    data = load_data(str(folder_of_images(tmp_path / "set")), Preprocessing((8, 8), None), 2)
    parts = calibration.apart(data, FitAsked("data-covariance"))
    names = [{part.name(i) for i in range(len(part))} for part in (parts.train, parts.val)]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == len(data.val) == 12
    assert calibration.apart(data, FitAsked()).train is None


def test_a_metric_without_images_is_refused(tmp_path, capsys):
    with pytest.raises(UsageError, match="needs calibration images"):
        run_decompose(settings(tmp_path, data=None), [])
    assert not (tmp_path / "run").exists()
    with pytest.raises(SystemExit) as exit_:
        main(["decompose", "digits_vgg", "--metric", "kronecker", "--out", str(tmp_path / "run")])
    assert exit_.value.code == 2
    assert capsys.readouterr().err.count("error: ") == 1


@pytest.mark.few(1)
@pytest.mark.parametrize("metric", ["data-covariance", "kronecker", "mahalanobis"])
def test_the_metric_reaches_the_run(tmp_path, metric):
    done = run_decompose(settings(tmp_path, metric=metric, calibration_images=12), ["cnncompress"])
    run = load_run(tmp_path / "run")
    assert run.plan.metric == metric
    assert set(run.plan.layers) == {"features.3", "classifier.3"}
    errors = provenance(run.model).errors
    assert all(0 < errors[name] < 1 for name in run.plan.layers)
    assert all(torch.isfinite(p).all() for p in run.model.parameters())
    assert any("predicted rise" in note for note in done.report.notes) == (metric == "kronecker")
    assert run.metrics["rows"][1]["images"] == run.metrics["rows"][0]["images"]


def test_data_aware_errors_are_smaller_in_the_outputs(tmp_path):
    """The chain fitted under data covariance has the smaller output error on images that it has not seen."""
    data = load_data("digits", Preprocessing((32, 32), None, (0.5,) * 3, (0.5,) * 3), 10)
    images = torch.stack([data.val[i][0] for i in range(64)])
    outputs = {}
    for metric in ("frobenius", "data-covariance"):
        chosen = settings(tmp_path, metric=metric, out=tmp_path / metric, layers=["features.3"], calibration_images=200)
        run_decompose(chosen, [])
        outputs[metric] = load_run(tmp_path / metric).model.features[:4]
    from cnncompress.models import load_model

    with torch.no_grad():
        wanted = load_model("digits_vgg").model.features[:4](images)
        error = {metric: float((net(images) - wanted).square().mean()) for metric, net in outputs.items()}
    assert error["data-covariance"] < 0.8 * error["frobenius"]


def test_statistics_are_kept_and_used_again(tmp_path, monkeypatch):
    run_decompose(settings(tmp_path, keep_statistics=True), [])
    kept = tmp_path / "run" / calibration.STATISTICS
    assert kept.is_file()
    first = {name: p.clone() for name, p in load_run(tmp_path / "run").model.named_parameters()}

    def unexpected(*args, **kwargs):
        raise AssertionError("collected again")

    monkeypatch.setattr(calibration, "collect_statistics", unexpected)
    again = settings(tmp_path, keep_statistics=True, force=True)
    run_decompose(again, [])
    assert kept.is_file()
    for name, parameter in load_run(tmp_path / "run").model.named_parameters():
        assert torch.equal(parameter, first[name])
    with pytest.raises(AssertionError, match="collected again"):
        run_decompose(settings(tmp_path, force=True, calibration_images=24), [])
    assert kept.is_file()
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["metric"] == "data-covariance"


def test_few_images_are_remarked_upon(tmp_path):
    done = run_decompose(settings(tmp_path, calibration_images=1), [])
    assert any("more --calibration-images" in note for note in done.report.notes)
