"""The original of a run, had again tensor by tensor or not at all, and its row in a report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cnncompress.api import run_decompose, run_evaluate, run_finetune, run_report
from cnncompress.config import DecomposeSettings, ModelSettings, TuneSettings
from cnncompress.errors import CompressError
from cnncompress.files.tensorfile import digest_of
from cnncompress.finetuning import FinetuneResult
from cnncompress.models import load_model
from cnncompress.network.evaluate import Evaluation
from cnncompress.network.profile import size_bytes
from cnncompress.pipeline import decompose, timing
from cnncompress.pipeline.asked import NetworkAsked
from cnncompress.pipeline.finetune import add_tuned
from cnncompress.pipeline.opened import open_network, open_run
from cnncompress.pipeline.original import NOT_AT_HAND, original_network, original_of
from cnncompress.pipeline.tuned import ERRORS_OF_FIT
from cnncompress.reporting import Report, Row
from tests.pipeline.networks import write_factory, write_images
from tests.timing import took

TRUSTED = {"trust_code": True}


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_factory(tmp_path)


def decomposed(model, **settings):
    asked = {"model": model, "input_size": 8, "rank": 2, "layers": ["two"], "out": "run", "force": True}
    return run_decompose(DecomposeSettings.model_validate(asked | settings), [])


def opened(path="run"):
    return open_run(Path(path), NetworkAsked(**TRUSTED))


def weights_file(path, seed, **arguments):
    state = load_model("net.py:build", seed=seed, arguments=arguments).model.state_dict()
    save_file(state, path)
    return path


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"seed": 3},
        {"seed": 3, "weights": "none"},
        {"seed": 3, "num_classes": 5},
        {"seed": 3, "model_arg": {"width": 4}},
        {"weights": "own.safetensors"},
        {"weights": "own.safetensors", "model_arg": {"width": 4}},
    ],
    ids=str,
)
def test_the_original_is_the_same_tensor_by_tensor(model, settings, monkeypatch):
    if "weights" in settings and settings["weights"] != "none":
        weights_file("own.safetensors", 7, **settings.get("model_arg", {}))
    decomposed(model, **settings)
    settings = dict(settings)
    arguments = settings.pop("model_arg", {})
    before = open_network(NetworkAsked(model, input_size=(8, 8), arguments=arguments, **settings))
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    found = original_network(opened("../run"))
    assert found is not None
    assert digest_of(found.state_dict()) == digest_of(before.model.state_dict())


def test_a_run_of_a_run_has_the_same_original(model):
    decomposed(model, seed=3)
    expected = digest_of(original_network(opened()).state_dict())
    decomposed("run", input_size=None, seed=4, layers=["one"], out="again", **TRUSTED)
    assert digest_of(original_network(opened("again")).state_dict()) == expected


def test_an_original_that_is_another_now_is_not_at_hand(model, tmp_path):
    weights_file("own.safetensors", 7)
    data = write_images(tmp_path / "images")
    decomposed(model, weights="own.safetensors", data=data)
    settings = ModelSettings.model_validate({"data": data, **TRUSTED})
    first = run_report([Path("run")], settings, ())
    assert first.rows[0].top1 is not None
    assert first.rows[1].top1_error is not None
    assert NOT_AT_HAND not in first.notes
    weights_file("own.safetensors", 8)
    second = run_report([Path("run")], settings, ())
    assert (second.rows[0].top1, second.rows[0].images) == (None, None)
    assert second.rows[1] == replace(first.rows[1], top1_error=None)
    assert NOT_AT_HAND in second.notes


def evaluated(model, data, **settings):
    return run_evaluate(ModelSettings.model_validate({"model": model, "data": data, **TRUSTED, **settings}))[1].images


def test_what_calibrated_or_trained_is_not_evaluated(model, tmp_path):
    """16 images: half of them calibrate, and a network that saw none of them is evaluated on all."""
    data = write_images(tmp_path / "images")
    assert evaluated(model, data, input_size=8) == 16
    decomposed(model, data=data, metric="data-covariance")
    assert evaluated("run", data) == 8
    assert [row.images for row in run_report([Path("run")], ModelSettings(data=data, trust_code=True), ()).rows] == [
        8
    ] * 2
    val = opened()
    decomposed(
        "run", input_size=None, data=data, metric="data-covariance", seed=9, out="again", layers=["one"], **TRUSTED
    )
    assert opened("again").run.info["held_out"] == val.run.info["held_out"]
    tuned = run_finetune(TuneSettings(model="run", data=data, epochs=1, lr=1e-3, seed=5, **TRUSTED), [])
    assert {row.images for row in tuned.report.rows} == {8}
    assert evaluated("run", data) == 8


def test_training_on_a_set_that_calibrated_nothing_holds_a_fifth_out(model, tmp_path):
    data = write_images(tmp_path / "images", images=10)
    decomposed(model, data=data)
    assert evaluated("run", data) == 20
    tuned = run_finetune(TuneSettings(model="run", data=data, epochs=1, lr=1e-3, **TRUSTED), [])
    assert {row.images for row in tuned.report.rows} == {4}  # the original's too, measured again
    assert evaluated("run", data) == 4


def test_the_row_of_the_original_is_of_the_original(model, tmp_path, monkeypatch):
    """Not of the run that is decomposed again: its accuracy is measured, and its latency is the first network's."""
    decomposed(model)
    seen = []

    def times(models, example, setting):
        seen.append({name: size_bytes(network) for name, network in models.items()})
        return {name: took(1.0) for name in models}

    monkeypatch.setattr(timing, "latency", times)
    data = write_images(tmp_path / "images")
    asked = {
        "input_size": None,
        "data": data,
        "out": "again",
        "layers": ["one"],
        "metric": "frobenius",
        "correct": "none",
    }
    done = run_decompose(
        DecomposeSettings.model_validate({"model": "run", "budget": "macs=0.9", **asked, **TRUSTED}), []
    )
    original, small = done.report.rows
    assert (original.images, small.images) == (16, 16)
    sizes = {name.partition(",")[0]: size for name, size in seen[-1].items()}
    assert sizes == {"original": original.size_bytes, "compressed": small.size_bytes}
    assert small.size_bytes < original.size_bytes
    assert "of the run's own" in done.report.notes[0]


def test_a_drop_from_an_accuracy_that_is_not_known_is_refused_at_once(model, tmp_path, monkeypatch):
    data = write_images(tmp_path / "images")
    weights_file("own.safetensors", 7)
    decomposed(model, weights="own.safetensors")
    Path("own.safetensors").unlink()
    monkeypatch.setattr(decompose, "fit", lambda *_: pytest.fail("a network was made"))
    asked = {"model": "run", "data": data, "max_drop": 1.0, "out": "again", **TRUSTED}
    with pytest.raises(CompressError, match="of the original on these images is not known"):
        run_decompose(DecomposeSettings.model_validate(asked), [])


def rows_after(best_epoch, kind, model, top1=60.0):
    decomposed(model)
    start, best = Evaluation(50.0, 100.0, 1.0, 10), Evaluation(top1, 100.0, 0.5, 10)
    result = FinetuneResult(best if best_epoch else start, best_epoch, best, start, [], "no epoch was better")
    last = Row("small", kind, 10, 10, 40, 1.0, 1.0, 7, took(1.0))
    report = Report([Row("net", "original", 20, 20, 80), last])
    data = type("D", (), {"fingerprint": "f", "name": "images"})
    add_tuned(report, opened(), result, data)
    return report


NOTHING = "fine-tuning on images gained nothing: top-1 50.00 % before and after, "


@pytest.mark.parametrize("kind", ["decomposed", "finetuned"])
def test_a_training_that_changed_nothing_adds_no_row(model, kind):
    report = rows_after(0, kind, model)
    assert [(row.name, row.kind, row.top1, row.images) for row in report.rows[1:]] == [("small", kind, 50.0, 10)]
    assert report.rows[1].latency is not None
    assert report.notes == [NOTHING + "no epoch was better"]


def test_a_training_that_gained_nothing_takes_the_place_of_what_it_trained(model):
    report = rows_after(2, "decomposed", model, top1=50.0)
    assert [(row.name, row.kind, row.top1) for row in report.rows[1:]] == [("small, fine-tuned", "finetuned", 50.0)]
    assert report.notes == [NOTHING + "loss 1.0000 → 0.5000", ERRORS_OF_FIT]


def test_a_training_that_gained_adds_a_row(model):
    report = rows_after(2, "decomposed", model)
    assert [(row.name, row.top1) for row in report.rows[1:]] == [("small", 50.0), ("small, fine-tuned", 60.0)]
    assert report.notes == [ERRORS_OF_FIT]


def test_a_second_training_has_the_row_of_the_first(model):
    report = rows_after(2, "finetuned", model)
    assert [(row.name, row.top1) for row in report.rows[1:]] == [("small", 60.0)]


def test_the_digest_tells_any_value():
    state = {"a": torch.zeros(3), "b": torch.ones(2, dtype=torch.int64)}
    changed = [{**state, "a": torch.tensor([0.0, 0.0, 1e-45])}, {"a": state["a"]}, {**state, "a": torch.zeros(3, 1)}]
    assert len({digest_of(s) for s in (state, *changed)}) == 4
    assert digest_of({name: tensor.clone() for name, tensor in state.items()}) == digest_of(state)


def test_latency_is_of_an_original_of_the_same_precision(model):
    decomposed(model)
    run = opened().run
    run.model.half()
    assert {p.dtype for p in original_of(run).parameters()} == {torch.float16}
