"""`cnncompress export --int8`: measured, then written."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import cnncompress as cc
from cnncompress.latency import network
from cnncompress.latency.setting import TimingSetting
from cnncompress.network.onnx import open_session
from cnncompress.pipeline import int8
from cnncompress.programs.measured import Int8Measured, Measured
from cnncompress.reporting import int8 as reporting
from cnncompress.reporting.int8 import int8_sentence, int8_table
from tests.cli.conftest import listing
from tests.timing import ONCE, took

pytest.importorskip("onnxscript")


@pytest.fixture(autouse=True)
def _once(monkeypatch):
    monkeypatch.setattr(network, "ROUNDS", ONCE)


@pytest.fixture
def seen(monkeypatch):
    """The calibration images and those that were evaluated."""
    found = {"scales": [], "evaluated": []}
    quantise, evaluate = int8.quantise, int8.evaluate

    def watching_scales(model, example, batches, *rest):
        return quantise(model, example, (found["scales"].append(x) or x for x in batches), *rest)

    def watching_evaluation(model, loader):
        found["evaluated"] += [batch[0] for batch in loader]
        return evaluate(model, loader)

    monkeypatch.setattr(int8, "quantise", watching_scales)
    monkeypatch.setattr(int8, "evaluate", watching_evaluation)
    return found


def export(done, saved, format_, name, *more):
    command = ("export", saved, "--int8", "--format", format_, "--data", "digits", "--calibration-images", "32")
    return done(*command, "--output", name, *more)


def test_onnx(saved, done, seen):
    text = export(done, saved, "onnx", "small.onnx")
    assert listing() == ["small.onnx"]
    assert re.match(
        r"int8 is .*; top-1 [+−]?\d+\.\d\d\s±\s\d+\.\d\d\spoints(, within\snoise)?,\s+on\s[\d,]+ images; scales", text
    )
    assert re.search(r"^int8 +\d+\.\d\d +[\d.]+ \[[\d.]+–[\d.]+\] +[\d.]+× ", text, re.MULTILINE)
    scales, evaluated = torch.cat(seen["scales"]), torch.cat(seen["evaluated"])
    assert len(scales) == 32
    assert not (evaluated[:, None] == scales).flatten(2).all(2).any()
    images = evaluated[:50]
    expected = cc.load(saved)(images)
    found = torch.from_numpy(open_session(Path("small.onnx"), 1).run(None, {"input": images.numpy()})[0])
    assert 0 < (found - expected).norm() < 0.2 * expected.norm()


@pytest.mark.slow
def test_openvino(saved, done, seen):
    openvino = pytest.importorskip("openvino")
    text = export(done, saved, "openvino", "small.xml")
    assert "in openvino" in text
    assert listing() == ["small.bin", "small.xml"]
    images = torch.cat(seen["evaluated"])[:50]
    compiled = openvino.Core().compile_model("small.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found, expected = torch.from_numpy(compiled(images.numpy())[0]), cc.load(saved)(images)
    assert 0 < (found - expected).norm() < 0.2 * expected.norm()


@pytest.mark.slow
def test_layers_that_stay_in_float(saved, done):
    import onnx

    export(done, saved, "onnx", "small.onnx", "--keep-float", "classifier.*", "--keep-float", "features.0*")
    names = [one.name for one in onnx.load("small.onnx").graph.initializer if one.name.endswith("weight_quantized")]
    assert names
    assert not [name for name in names if name.startswith(("classifier.", "features.0."))]


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--int8", "--format", "onnx"], 2, "--int8 needs images that scales come from; give --data"),
        (["--int8", "--format", "pt2", "--data", "digits"], 2, "--int8 is for --format onnx and openvino, not pt2"),
        (["--format", "onnx", "--data", "digits"], 2, "--data is for --int8; give that too"),
        (["--format", "onnx", "--keep-float", "a"], 2, "--keep-float is for --int8; give that too"),
        (["--format", "onnx", "--weight-bits", "7"], 2, "--weight-bits is for --int8; give that too"),
        (["--int8", "--format", "onnx", "--data", "digits", "--keep-float", "no*"], 2, "'no*' matches no layer; they"),
        (["--int8", "--format", "onnx", "--data", "digits", "--batch-size", "0"], 2, "--batch-size: 0 should be"),
        (["--int8", "--format", "onnx", "--data", "nowhere"], 1, "nowhere"),
    ],
)
def test_what_makes_no_sense_is_refused(saved, refused, args, code, words):
    assert words in refused("export", saved, *args, "--output", "net.onnx", code=code)


def test_an_existing_file_stays(saved, refused):
    Path("net.onnx").write_text("mine")
    args = ("--int8", "--format", "onnx", "--data", "digits", "--output", "net.onnx")
    assert "net.onnx already exists" in refused("export", saved, *args)
    assert Path("net.onnx").read_text() == "mine"


@pytest.mark.slow
def test_a_file_that_computes_something_else_is_not_kept(saved, refused, monkeypatch):
    monkeypatch.setattr("cnncompress.programs.int8.compare", lambda *_: (1.0, 1.0))
    monkeypatch.setattr("cnncompress.cli.export.tell", lambda _: None)
    args = ("--int8", "--format", "onnx", "--data", "digits", "--output", "net.onnx", "--calibration-images", "8")
    assert "differ from the quantised network's by 1.0e+00" in refused("export", saved, *args)


def measured(ms, same=None):
    return Int8Measured(Measured(4_000_000, took(2.0)), Measured(1_000_000, took(ms)), same, None, 64, 1000)


def test_int8_that_is_slower_says_so():
    said = "int8 is slower here: 1.50 of the time of float in torch; the same answer to 97.5 % of 1,000 images;"
    assert int8_sentence(measured(3.0, 97.5)).startswith(said)
    assert int8_sentence(measured(0.5, 97.5)).startswith("int8 is 4.0 times faster than float in torch here; the same")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("overflows", [True, False])
def test_openvino_wants_a_fixed_batch_size_where_sums_overflow(monkeypatch, runtime, overflows):
    monkeypatch.setattr(reporting, "sums_overflow", lambda: overflows)
    known = measured(0.5, 97.5)
    latency = replace(known.int8.latency, setting=TimingSetting(runtime))
    told = int8_sentence(replace(known, int8=replace(known.int8, latency=latency)))
    assert ("batch size fixed" in told) == (overflows and runtime == "openvino")


def test_the_table_of_both_precisions():
    headers, rows, _ = int8_table(measured(0.5, 97.5))
    assert headers == ["precision", "top-1 %", "ms [p10–p90]", "share", "bytes"]
    assert rows[1] == ["int8", "–", "0.5 [0.5–0.5]", "0.25×", "1.000MB 0.25×"]
