"""`cc.export(..., int8=...)`: written in 8-bit integers, with what that does to the network."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import cnncompress as cc
from cnncompress.latency import network
from cnncompress.network.onnx import open_session
from tests.timing import ONCE

pytest.importorskip("onnxscript")


@pytest.fixture(autouse=True)
def _once(monkeypatch):
    monkeypatch.setattr(network, "ROUNDS", ONCE)


@pytest.fixture(scope="module")
def given():
    """A network, images for scales and others with labels."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 5)]
    batches = [(torch.randn(50, 3, 8, 8), torch.randint(5, (50,))) for _ in range(2)]
    return nn.Sequential(*layers).eval(), torch.randn(48, 3, 8, 8), batches


def answers(path, images):
    """Those of an ONNX file, in a session of its own."""
    return torch.from_numpy(open_session(path, 1).run(None, {"input": images.numpy()})[0])


def test_what_is_measured_is_what_the_file_does(given, tmp_path):
    model, images, val = given
    path = tmp_path / "small.onnx"
    report = cc.export(model, path, images[:2], int8=cc.Int8Settings(images, val))
    told = report.int8
    assert (told.calibrated, told.evaluated, told.same) == (48, 100, None)
    hits = torch.cat([answers(path, x).argmax(1) == labels for x, labels in val])
    assert told.int8.evaluation.top1 == pytest.approx(100 * hits.double().mean().item())
    assert told.single.evaluation.top1 == pytest.approx(cc.evaluate(model, val, progress=False).top1)
    assert told.int8.bytes == report.bytes == path.stat().st_size < told.single.bytes
    assert told.int8.latency.setting.label == "onnxruntime:int8"


def test_without_labels_the_answers_are_compared(given, tmp_path):
    model, images, val = given
    told = cc.export(model, tmp_path / "a.onnx", images[:2], int8=cc.Int8Settings([images], val[0][0])).int8
    same = (answers(tmp_path / "a.onnx", val[0][0]).argmax(1) == model(val[0][0]).argmax(1)).double().mean()
    assert told.same == pytest.approx(100 * same.item())
    assert told.single.evaluation is told.int8.evaluation is told.top1_error is None


def test_layers_that_stay_in_float_and_nothing_to_evaluate(given, tmp_path):
    onnx = pytest.importorskip("onnx")
    model, images, _ = given
    how = cc.Int8Settings(iter([images]), keep_float=["4"])
    report = cc.export(copy.deepcopy(model).half(), tmp_path / "a.onnx", images[:2].half(), int8=how, opset=17)
    assert (report.int8.evaluated, report.int8.calibrated) == (0, 48)
    program = onnx.load(tmp_path / "a.onnx")
    names = [one.name for one in program.graph.initializer if one.name.endswith("weight_quantized")]
    assert names == ["0.weight_quantized"]
    assert [one.version for one in program.opset_import if not one.domain] == [17]


@pytest.mark.parametrize(
    ("settings", "more", "error", "words"),
    [
        ({"images": []}, {}, cc.CompressError, "no images to take scales from"),
        ({"val": iter([])}, {}, cc.UsageError, "give a loader or a list of batches, not an iterator"),
        ({"val": []}, {}, cc.CompressError, "no images to evaluate on"),
        ({}, {"format": "pt2"}, cc.UsageError, "int8 is for onnx and openvino, not pt2"),
        ({"keep_float": ["no*"]}, {}, cc.UsageError, r"'no\*' matches no layer"),
    ],
)
def test_what_does_not_fit_is_refused(given, tmp_path, settings, more, error, words):
    model, images, _ = given
    how = cc.Int8Settings(**{"images": images[:4], **settings})
    with pytest.raises(error, match=words):
        cc.export(model, tmp_path / "a.onnx", images[:2], int8=how, **more)
    assert not list(tmp_path.iterdir())


def test_operators_of_a_version_are_for_onnx(given, tmp_path):
    with pytest.raises(cc.UsageError, match="opset is for onnx and openvino, not pt2"):
        cc.export(given[0], tmp_path / "a.pt2", torch.zeros(2, 3, 8, 8), opset=17)
