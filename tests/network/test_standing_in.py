"""What forward passes ask of their layers: a chain answers, or the layer is kept with the reason."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import cnncompress as cc
from cnncompress.errors import CompressError
from cnncompress.network.standing_in import OUTPUTS_CHANGE, PASSED_BY, READS_WEIGHT, USES_ATTRIBUTE, examine
from tests.correction.networks import images, made


class Net(nn.Module):
    """Two convolutions and a head; subclasses ask them for something."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.fc, self.extra = nn.Linear(8, 5), nn.Parameter(torch.ones(2))
        self.a.gain = 2.0

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))


class Geometry(Net):
    def forward(self, x: Tensor) -> Tensor:
        assert self.b.bias is None
        assert self.a.bias is not None
        assert self.a.out_channels == self.b.in_channels == self.fc.in_features
        assert (self.a.kernel_size, self.a.stride, self.a.padding) == ((3, 3), (1, 1), (1, 1))
        assert (self.a.dilation, self.a.groups, self.a.padding_mode) == ((1, 1), 1, "zeros")
        assert not hasattr(self.fc, "in_channels")
        y = super().forward(self.a.gain * x).view(-1, self.fc.out_features)
        return y + self.a.weight.shape[0] + self.fc.weight.size(1) + self.b.weight.numel() + self.a.bias.dim()


class Precision(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.a.weight.dtype).to(self.a.weight.device).to(self.b.weight).type_as(self.fc.weight)
        assert self.a.weight.is_floating_point()
        return super().forward(x) + self.fc.weight.new_zeros(5) + torch.ones(5, dtype=self.fc.bias.dtype)


ANSWERED = [Geometry, Precision]


@pytest.mark.parametrize("kind", ANSWERED)
def test_a_chain_answers_for_the_layer(kind):
    model, x = made(kind()), images(2)
    plan = cc.plan(model, x, rank=1.0, force=True)
    assert plan.layers.keys() == {"a", "b", "fc"}
    assert torch.allclose(cc.decompose(model, plan, progress=False)(x), model(x), atol=1e-4)
    assert cc.decompose(model, cc.plan(model, x, rank=2, force=True), progress=False)(x).shape == (2, 5)


class Cosine(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(F.relu(self.b(self.a(x))).mean((2, 3))), F.normalize(self.fc.weight))


class Tied(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.conv_transpose2d(F.relu(self.a(x)), self.a.weight, padding=1))


class Decay(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + sum(layer.weight.square().sum() for layer in (self.a, self.b))


class Data(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.a.bias.data.sum()


class Kind(Net):
    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.a, self.b):
            x = F.relu(layer(x)) if isinstance(layer, nn.Conv2d) else layer(x)
        return self.fc(x.mean((2, 3)))


class Private(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.a._conv_forward(x, torch.ones(3, 3, 1, 1), None))


class Listed(Net):
    """Its layers are in a list too, by which one is called, and another once more."""

    def __init__(self) -> None:
        super().__init__()
        self.listed = [self.a, self.b]

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(F.relu(self.listed[0](x)))
        return self.fc(F.relu(self.listed[1](F.relu(y))).mean((2, 3)))


class Enclosed(Net):
    def __init__(self) -> None:
        super().__init__()
        a = self.a
        self.first = functools.partial(self.b)
        self.start = lambda x: a(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.first(F.relu(self.start(x)))).mean((2, 3)))


KEPT = {
    Cosine: {"fc": "not called"},
    Tied: {"a": READS_WEIGHT},
    Decay: {"a": READS_WEIGHT, "b": READS_WEIGHT},
    Data: {"a": READS_WEIGHT},
    Kind: {"a": OUTPUTS_CHANGE, "b": OUTPUTS_CHANGE},
    Private: {"a": USES_ATTRIBUTE},
    Listed: {"a": PASSED_BY, "b": PASSED_BY},
    Enclosed: {"a": PASSED_BY, "b": PASSED_BY},
}


@pytest.mark.parametrize("kind", KEPT)
def test_a_layer_that_is_more_than_called_is_kept_with_the_reason(kind):
    model, x = made(kind()), images(2)
    before = model(x)
    plan = cc.plan(model, x, rank=2, force=True)
    assert plan.layers.keys() == {"a", "b", "fc"} - KEPT[kind].keys()
    assert all(words in plan.kept[name] for name, words in KEPT[kind].items())
    assert cc.decompose(model, plan, progress=False)(x).shape == before.shape
    exact = cc.decompose(model, cc.plan(model, x, rank=1.0, force=True), progress=False)
    assert torch.allclose(exact(x), before, atol=1e-4)


class Random(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x))


def test_random_networks_keep_nothing_for_that():
    assert not any(call.kept for call in examine(made(Random()), images(1)).values())


def test_a_weight_that_another_module_has_too_is_shared():
    model = made(Net())
    model.extra = model.fc.weight
    assert "shared with extra" in cc.plan(model, images(1), rank=2, force=True).kept["fc"]


def test_transformer_layers_run_after_the_swap():
    layer = nn.TransformerEncoderLayer(8, 2, 32, batch_first=True)
    model = made(nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(2), nn.Unflatten(1, (1, 8)), Tokens(layer))).eval()
    plan = cc.plan(model, images(1), rank=2)
    assert {"3.layer.linear1", "3.layer.linear2"} <= plan.layers.keys()
    with torch.inference_mode():
        assert cc.decompose(model, plan, progress=False)(images(2)).shape == (2, 8)


class Tokens(nn.Module):
    """An encoder layer on the rows of a matrix."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x[:, 0].mT).mean(1)


def test_values_of_a_replaced_layer_are_refused_in_one_line():
    model, x = made(Net()), images(1)
    small = cc.decompose(model, cc.plan(model, x, rank=2, force=True), progress=False)
    assert repr(small.fc.weight) == "Absent((5, 8), torch.float32, cpu)"
    with pytest.raises(CompressError, match="values of a replaced layer are read"):
        small.fc.weight.sum()
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = small.fc.nothing
    assert small.double().fc.weight.dtype == torch.float64
