"""A plain convolution whose weight is a parametrization while it trains, and a plain weight after."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from cnncompress.chains.layers import fold_parametrizations
from cnncompress.chains.lowering import lower
from cnncompress.chains.modules import FactoredLayer
from cnncompress.chains.spec import ConvSpec
from cnncompress.chains.training import fold, folded, start_training


class LengthAndDirection(nn.Module):
    """w = length · v / ‖v‖, filter by filter."""

    def forward(self, length, v):
        return length * v / v.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)

    def right_inverse(self, weight):
        return weight.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1), weight


@dataclass(frozen=True)
class Normed(ConvSpec):
    """A convolution that trains the lengths and the directions of its filters."""

    free_kernel = False

    def start_training(self, module):
        parametrize.register_parametrization(module, "weight", LengthAndDirection())
        return True

    def fold(self, module):
        return fold_parametrizations(module)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    chain = FactoredLayer((ConvSpec(3, 4), Normed(4, 6, (3, 3), bias=True)))
    return nn.Sequential(chain, nn.ReLU(), nn.Conv2d(6, 2, 1))


def step(model, x):
    model(x).square().sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter -= 0.01 * parameter.grad


def test_it_trains_other_parameters_and_is_stored_as_a_plain_convolution():
    model, x = network(), torch.randn(2, 3, 6, 6)
    shapes, expected = {name: t.shape for name, t in model.state_dict().items()}, model(x)
    start_training(model)
    start_training(model)  # a second time changes nothing
    assert [n for n in model.state_dict() if n.startswith("0.1")] == [
        "0.1.bias",
        "0.1.parametrizations.weight.original0",
        "0.1.parametrizations.weight.original1",
    ]
    torch.testing.assert_close(model(x), expected)
    step(model, x)
    trained = model(x)
    assert not torch.allclose(trained, expected)
    copied = folded(model)
    torch.testing.assert_close(model(x), trained)  # the copy is folded, not this one
    fold(model)
    for plain in (model, copied):
        assert type(plain[0][1]) is nn.Conv2d
        assert {name: t.shape for name, t in plain.state_dict().items()} == shapes
        torch.testing.assert_close(plain(x), trained)
    network().load_state_dict(copy.deepcopy(model.state_dict()))


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_weights_stay_frozen_parameters(frozen):
    model, x = network(), torch.randn(1, 3, 6, 6)
    start_training(model)
    model[0].requires_grad_(not frozen)
    before = model(x)
    fold(model)
    assert isinstance(model[0][1].weight, nn.Parameter)
    assert model[0][1].weight.requires_grad is not frozen
    torch.testing.assert_close(model(x), before)


def test_networks_without_a_training_form_stay_themselves():
    model = nn.Sequential(FactoredLayer((ConvSpec(3, 4), ConvSpec(4, 2))))
    parameters = list(model.parameters())
    start_training(model)
    assert folded(model) is model
    fold(model)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))


@pytest.mark.parametrize("lowering", ["pad8", "merge"])
def test_what_is_no_plain_convolution_is_not_lowered_as_one(lowering):
    chain = (ConvSpec(3, 4), Normed(4, 6, (3, 3)), ConvSpec(6, 5))
    assert lower(chain, lowering) == chain
