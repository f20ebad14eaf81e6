"""A kind of layer registered in this file alone is listed, counted, planned, fitted, corrected, saved and loaded."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import cnncompress as cc
from cnncompress.chains.modules import FactoredLayer
from cnncompress.chains.spec import ConvSpec
from cnncompress.cli import main
from cnncompress.errors import UnsupportedLayerError
from cnncompress.network.kinds import KINDS, Conv2dKind, dense_weight, kind_of, register
from cnncompress.network.layers import layers_of
from cnncompress.network.trace import trace
from cnncompress.statistics import collect_statistics
from tests.correction.networks import natural

FACTORY = "tests.axes.test_layer_kind:build"


class Pointwise(nn.Module):
    """A 1×1 convolution written by hand: its kernel is [C, F]."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(channels, filters) / channels**0.5)
        self.offset = nn.Parameter(torch.randn(filters))

    def forward(self, x):
        return torch.einsum("nchw,cf->nfhw", x, self.mix) + self.offset[:, None, None]


class Net(nn.Module):
    def __init__(self, pointwise) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.wide, self.narrow = pointwise(24, 32), pointwise(32, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.wide(self.norm(self.stem(x)).relu()).relu()
        return self.head(self.narrow(x).relu().mean((2, 3)))


def build() -> nn.Module:
    torch.manual_seed(0)
    return Net(Pointwise).eval()


def twin() -> nn.Module:
    """The same network with the convolutions of torch."""
    model, state = Net(lambda channels, filters: nn.Conv2d(channels, filters, 1)).eval(), build().state_dict()
    for name in ("wide", "narrow"):
        state[f"{name}.weight"] = state.pop(f"{name}.mix").T[:, :, None, None]
        state[f"{name}.bias"] = state.pop(f"{name}.offset")
    model.load_state_dict(state)
    return model


@pytest.fixture(autouse=True)
def pointwise():
    """The kind, registered for one test."""

    @register(Pointwise)
    class PointwiseKind(Conv2dKind):
        def spec(self, module):
            return ConvSpec(*module.mix.shape, bias=True)

        def is_plain(self, module):
            return type(module).forward is Pointwise.forward

        def parameter(self, module):
            return module.mix

        def bias(self, module):
            return module.offset

        def dense(self, module, values=None):
            return (module.mix if values is None else values).T[:, :, None, None]

        def laid_out(self, module, dense):
            return dense[:, :, 0, 0].T

    yield PointwiseKind
    KINDS.pop(Pointwise, None)


def test_without_its_kind_it_is_no_layer():
    del KINDS[Pointwise]
    assert list(layers_of(build())) == ["stem", "head"]
    with pytest.raises(UnsupportedLayerError, match="Pointwise is neither a Conv2d nor a Linear"):
        kind_of(Pointwise(2, 3))
    assert {other.name for other in cc.profile(build(), natural(1)).others} == {"wide", "narrow"}


def test_it_is_listed_traced_and_counted():
    model, x = build(), natural(1)
    assert list(layers_of(model)) == ["stem", "wide", "narrow", "head"]
    calls = trace(model, x)
    assert calls["wide"].sizes == ((8, 8),)
    assert calls["wide"].macs == 24 * 32 * 8 * 8
    cost = cc.profile(model, x)
    assert cost.macs == 8 * 8 * (3 * 24 * 9 + 24 * 32 + 32 * 16) + 16 * 10
    assert cost.other_macs == 0
    assert not cost.others


@pytest.mark.parametrize("metric", ["data-covariance", "kronecker", "mahalanobis"])
def test_statistics_are_those_of_the_same_convolution(metric):
    batches = [(natural(6), torch.tensor([1, 2, 3, 4, 5, 6]))]
    found, expected = (collect_statistics(m, batches, metric, progress=False) for m in (build(), twin()))
    assert found.keys() == expected.keys()
    for name, statistics in expected.items():
        for field in ("mean", "moment", "gradient", "sensitivity"):
            wanted = getattr(statistics, field)
            if wanted is not None:
                torch.testing.assert_close(getattr(found[name], field), wanted, rtol=1e-3, atol=1e-5)


def kernel_of(layer: nn.Module) -> torch.Tensor:
    """The kernel [F, C, 1, 1] of a layer or chain."""
    return layer.to_dense() if isinstance(layer, FactoredLayer) else dense_weight(layer)


def test_a_correction_gives_it_what_it_gives_the_same_convolution():
    """Chains in network order, and a new kernel and bias for the one that stays."""
    x, results = natural(40), []
    for model in (build(), twin()):
        plan = cc.plan(model, x[:1], rank=0.4, metric="data-covariance", layers=["stem", "wide"], images=x)
        statistics = collect_statistics(model, [x], progress=False)
        how = cc.Correction(adjust=["narrow"])
        small = cc.decompose_in_order(model, plan, x, statistics=statistics, correction=how, progress=False)
        assert isinstance(small.wide, FactoredLayer)
        assert not torch.equal(dense_weight(small.narrow), dense_weight(model.narrow))
        results.append(small)
    assert isinstance(results[0].narrow, Pointwise)
    for name in ("wide", "narrow"):
        dense = [kernel_of(small.get_submodule(name)) for small in results]
        torch.testing.assert_close(*dense, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(results[0](x), results[1](x), rtol=1e-3, atol=1e-3)


def run(*arguments: str) -> int:
    """The exit status of a command."""
    with pytest.raises(SystemExit) as exit_:
        main(list(arguments))
    return exit_.value.code


def test_the_command_line_takes_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("inspect", FACTORY, "--input-size", "8") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "1×1 24→32" in text
    assert "whose input channels stay whole: wide cannot change" in text  # no `narrow` of its own
    images = "--data", "digits", "--calibration-images", "50"
    options = "--input-size", "8", "--layers", "wide", "--method", "channel-svd", "--rank", "0.25", "--correct", "refit"
    assert run("decompose", FACTORY, *images, *options, "--metric", "kronecker", "--out", "run") == 0
    stored = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert list(stored["layers"]) == ["wide"]
    assert run("evaluate", "run", "--data", "digits", "--trust-code") == 0
    capsys.readouterr()
    assert run("report", "run", "--format", "json", "--trust-code") == 0
    (row,) = json.loads(capsys.readouterr().out)["layers"]
    assert row["params"] == [24 * 32 + 32, 6 * (24 + 32) + 32]
    assert run("export", "run", "--format", "pt2", "--trust-code") == 0
    assert (tmp_path / "run.pt2").is_file()
    small = cc.load(tmp_path / "run", trust_code=True)
    assert isinstance(small.wide, FactoredLayer)
    assert isinstance(small.narrow, Pointwise)
    assert small(natural(2)).shape == (2, 10)
