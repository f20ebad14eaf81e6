"""Programs in 8-bit integers: their weights and scales, against arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cnncompress.errors import CompressError
from cnncompress.network.onnx import to_onnx
from cnncompress.network.quantize import layers_of, quantized

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
session_of = pytest.importorskip("cnncompress.network.onnx").open_session


def network():
    torch.manual_seed(0)
    net = nn.Sequential()
    net.add_module("first", nn.Conv2d(3, 4, 3))
    net.add_module("act", nn.ReLU())
    net.add_module("depthwise", nn.Conv2d(4, 4, 3, groups=4))
    net.add_module("pool", nn.AdaptiveAvgPool2d(1))
    net.add_module("flat", nn.Flatten())
    net.add_module("head", nn.Linear(4, 2))
    return net.eval()


@pytest.fixture(scope="module")
def program():
    return to_onnx(network(), torch.randn(2, 3, 8, 8)).model_proto.SerializeToString()


def images(batches=3):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 3, 8, 8, generator=generator) for _ in range(batches)]


def tensors(model):
    return {one.name: torch.tensor(onnx.numpy_helper.to_array(one)) for one in model.graph.initializer}


def test_weights_are_symmetric_with_a_scale_for_each_channel(program):
    found, weight = tensors(onnx.load_from_string(quantized(program, images()))), network().first.weight.detach()
    scales = weight.abs().amax((1, 2, 3)) / 127
    assert torch.allclose(found["first.weight_scale"], scales, rtol=1e-5)
    assert not found["first.weight_zero_point"].any()
    rounded = found["first.weight_quantized"]
    assert rounded.dtype == torch.int8
    assert ((rounded * scales[:, None, None, None] - weight).abs() <= 0.5001 * scales[:, None, None, None]).all()


def test_weights_of_7_bits(program):
    found, weight = tensors(onnx.load_from_string(quantized(program, images(), (), 7))), network().first.weight.detach()
    rounded, scales = found["first.weight_quantized"], found["first.weight_scale"][:, None, None, None]
    assert rounded.dtype == torch.int8
    assert 60 < int(rounded.abs().max()) <= 64
    assert ((rounded * scales - weight).abs() <= 0.5001 * scales).all()
    assert found["input_scale"] == tensors(onnx.load_from_string(quantized(program, images())))["input_scale"]


def test_activations_span_what_was_seen(program):
    """The smallest and largest value of all batches, 255 steps apart, with zero among them."""
    seen = images()
    found = tensors(onnx.load_from_string(quantized(program, seen)))
    low, high = torch.cat(seen).aminmax()
    assert float(found["input_scale"]) == pytest.approx(float(high - low) / 255, rel=1e-5)
    assert int(found["input_zero_point"]) == round(float(-low) / (float(high - low) / 255))
    assert found["input_zero_point"].dtype == torch.uint8


def test_it_computes_nearly_what_the_network_does(program):
    session = session_of(quantized(program, images()), threads=1)
    x = images(1)[0]
    found, expected = torch.from_numpy(session.run(None, {"input": x.numpy()})[0]), network()(x)
    difference = (found - expected).abs().max() / expected.abs().max()
    assert 1e-5 < difference < 5e-2


@pytest.mark.parametrize(
    ("patterns", "rounded"),
    [((), {"first", "depthwise", "head"}), (("depth*",), {"first", "head"}), (("first", "head"), {"depthwise"})],
)
def test_layers_that_stay_in_float(program, patterns, rounded):
    found = tensors(onnx.load_from_string(quantized(program, images(), patterns)))
    assert {name.removesuffix(".weight_quantized") for name in found if name.endswith(".weight_quantized")} == rounded


def test_layers_are_found_by_name(program):
    assert layers_of(onnx.load_from_string(program)) == ["first", "depthwise", "head"]


def test_what_cannot_be_quantised_is_said_in_one_line(program):
    with pytest.raises(CompressError, match="ONNX Runtime cannot quantise this network: ") as error:
        quantized(program, [torch.randn(2, 5, 8, 8)])
    assert "\n" not in str(error.value)
