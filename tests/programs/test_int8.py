"""`cc.export(..., int8=...)`: written in 8-bit integers, with what that does to the network."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import cnncompress as cc
from cnncompress import processor
from cnncompress.latency import network
from cnncompress.network.onnx import open_session
from cnncompress.programs.int8 import TARGETS, quantise
from cnncompress.reporting import int8 as reporting
from cnncompress.reporting.int8 import int8_sentence
from tests.timing import ONCE

onnx = pytest.importorskip("onnx")
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
    first = [answers(path, x).double().topk(5).indices[:, 0] for x, _ in val]  # of equal ones, as evaluation has it
    hits = torch.cat([guess == labels for guess, (_, labels) in zip(first, val, strict=True)])
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


def quantised_weight(path):
    return next(one for one in onnx.load(path).graph.initializer if one.name == "0.weight_quantized")


@pytest.mark.parametrize(
    ("overflows", "asked", "bits"), [(True, None, 7), (True, 8, 8), (False, None, 8), (False, 7, 7)]
)
def test_weights_have_7_bits_where_sums_of_products_overflow(given, tmp_path, monkeypatch, overflows, asked, bits):
    monkeypatch.setattr(processor, "sums_overflow", lambda: overflows)
    monkeypatch.setattr(reporting, "sums_overflow", lambda: overflows)
    model, images, _ = given
    how = cc.Int8Settings(images, weight_bits=asked)
    told = cc.export(model, tmp_path / "a.onnx", images[:2], int8=how).int8
    largest = np.abs(onnx.numpy_helper.to_array(quantised_weight(tmp_path / "a.onnx")).astype(int)).max()
    assert (told.weight_bits, largest > 64) == (bits, bits == 8)
    assert ("Weights have 7 bits" in int8_sentence(told)) == (bits == 7)
    assert ("--weight-bits 7" in int8_sentence(told)) == (overflows and bits == 8)


def test_openvino_is_asked_with_the_shape_of_each_batch(given):
    openvino = pytest.importorskip("openvino")
    model, images, _ = given
    program = quantise(model, images[:2], [images]).int8
    run = TARGETS["openvino"].run(program)
    for count in (3, 5, 3):
        known = openvino.Core().read_model(program)
        known.reshape([count, 3, 8, 8])
        compiled = openvino.Core().compile_model(known, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        x = images[:count]
        torch.testing.assert_close(run(x), torch.from_numpy(compiled([x.numpy()])[0]), rtol=1e-5, atol=1e-5)


def test_chains_are_balanced(tmp_path):
    """A channel between stages that is a hundred times another is not: int8 comes as near as without the factor."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    small = cc.decompose(model.eval(), cc.plan(model, torch.zeros(1, 3, 8, 8), method="spatial-svd", rank=6))
    images = torch.randn(64, 3, 8, 8)
    expected = small(images)
    with torch.no_grad():
        small[0][0].weight[0] *= 100
        small[0][1].weight[:, 0] /= 100
    skewed = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    cc.export(small, tmp_path / "a.onnx", images[:2], int8=cc.Int8Settings(images))
    error = (answers(tmp_path / "a.onnx", images) - expected).norm() / expected.norm()
    assert error < 0.03  # a step of a hundredth of the range of the others would be some 0.1
    assert all(torch.equal(tensor, skewed[name]) for name, tensor in small.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "more", "error", "words"),
    [
        ({"images": []}, {}, cc.CompressError, "no images to take scales from"),
        ({"val": iter([])}, {}, cc.UsageError, "give a loader or a list of batches, not an iterator"),
        ({"val": []}, {}, cc.CompressError, "no images to evaluate on"),
        ({}, {"format": "pt2"}, cc.UsageError, "int8 is for onnx and openvino, not pt2"),
        ({"weight_bits": 6}, {}, cc.UsageError, "weights have 7 or 8 bits, not 6"),
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
