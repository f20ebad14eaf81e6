"""A convolution that trains with batch normalisation after it and is stored without."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from cnncompress.chains.modules import FactoredLayer
from cnncompress.chains.spec import ConvSpec
from cnncompress.chains.stages import STAGES, Normalised
from cnncompress.chains.training import fold, folded, start_training
from tests.decompositions.helpers import randn

LAST = Normalised(4, 6, (1, 3), padding=(0, 1), groups=2, bias=True)


def network() -> nn.Sequential:
    chain = FactoredLayer((ConvSpec(3, 4, (3, 1), padding=(1, 0)), LAST), dtype=torch.float64)
    chain.write_kernels([randn(4, 3, 3, 1), randn(6, 2, 1, 3, seed=1)])
    chain.add_to_bias(randn(6, seed=2))
    return nn.Sequential(chain, nn.ReLU()).eval()


def train(model, images, steps=60):
    """Some steps with the statistics of batches."""
    model.train()
    for _ in range(steps):
        model(images).square().sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 1e-5 * parameter.grad
                parameter.grad = None
    return model.eval()


def test_it_starts_as_the_identity():
    model, x = network(), randn(2, 3, 7, 8)
    expected = model(x)
    start_training(model)
    assert isinstance(model[0][1].norm, nn.BatchNorm2d)
    assert "0.1.bias" not in model.state_dict()
    torch.testing.assert_close(model(x), expected)


def test_it_normalises_in_train_mode():
    """From random kernels every filter has variance 1 + eps and the mean that the bias was."""
    model, x = network(), randn(40, 3, 7, 8)
    start_training(model)
    outputs = model.train()[0](x)
    torch.testing.assert_close(outputs.mean((0, 2, 3)), randn(6, seed=2))
    torch.testing.assert_close(outputs.var((0, 2, 3), correction=0), torch.ones(6).double(), rtol=1e-4, atol=0)


def test_folding_and_starting_again_change_no_output():
    model, x = network(), randn(20, 3, 7, 8)
    shapes, before = {name: t.shape for name, t in model.state_dict().items()}, model(x)
    start_training(model)
    train(model, x)
    after, copied = model(x), folded(model)
    assert not torch.allclose(after, before)
    fold(model)
    for plain in (model, copied):
        assert {name: t.shape for name, t in plain.state_dict().items()} == shapes
        assert plain[0][1].norm is None
        torch.testing.assert_close(plain(x), after)
    again = copy.deepcopy(model)
    start_training(again)
    torch.testing.assert_close(again(x), after)
    torch.testing.assert_close(again.train()(x), after, rtol=0.1, atol=0.1)  # of statistics that it has seen before


def test_the_statistics_are_those_of_the_outputs_without_bias():
    model, x = network(), randn(20, 3, 7, 8)
    start_training(model)
    for _ in range(200):
        model.train()(x)
    fold(model)
    outputs = model.eval()[0](x) - model[0][1].bias[:, None, None]
    torch.testing.assert_close(model[0][1].mean.double(), outputs.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model[0][1].variance.double(), outputs.var((0, 2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_parameters_stay_frozen(frozen):
    model = network()
    model.requires_grad_(not frozen)
    start_training(model)
    assert all(p.requires_grad is not frozen for p in model.parameters())
    fold(model)
    assert all(p.requires_grad is not frozen for p in model.parameters())
    assert isinstance(model[0][1].bias, nn.Parameter)


def test_it_is_exported_as_a_plain_convolution():
    model, x = network(), randn(2, 3, 7, 8)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x))
    assert not any("batch_norm" in str(node.target) for node in program.graph.nodes)


def test_what_it_counts():
    """6 filters of 2·3 weights, biases, and while it trains a scale and a shift each."""
    assert LAST.params == 6 * 6 + 6
    assert LAST.trained_params == 6 * 6 + 12


def test_it_needs_a_bias():
    with pytest.raises(ValueError, match="with a bias"):
        LAST.replace(bias=False)
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in LAST.to_json().items()} | {"kind": "normalised"}
    assert STAGES["normalised"].from_json("normalised", {k: v for k, v in values.items() if k != "kind"}) == LAST
    with pytest.raises(ValueError, match="with a bias"):
        STAGES["normalised"].schema.model_validate(values | {"bias": False}, strict=True)
