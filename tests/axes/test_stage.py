"""A type of stages and a method that uses it, registered in this file alone: fit, run, training, export, CLI."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from cnncompress.chains.layers import ParallelConv2d, fold_parametrizations
from cnncompress.chains.modules import FactoredLayer
from cnncompress.chains.spec import ConvSpec
from cnncompress.chains.stages import STAGES, Parallel, Stage, TensorSpec, register
from cnncompress.chains.training import fold, folded, start_training
from cnncompress.cli import main
from cnncompress.decompositions import REGISTRY, Decomposition
from cnncompress.decompositions.base import register as register_method
from cnncompress.errors import RunError
from cnncompress.files.reading import Schema
from cnncompress.files.schemas import Channels
from cnncompress.network.provenance import provenance
from cnncompress.runs import load, load_run, save
from tests.finetuning.toy import tune

KIND, METHOD = "test-gain", "test-composite"


class GainSchema(Schema):
    kind: Literal["test-gain"]
    channels: Channels

    @property
    def in_channels(self):
        return self.channels

    out_channels = in_channels


class GainModule(nn.Module):
    def __init__(self, channels, device=None, dtype=None):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, device=device, dtype=dtype))

    def forward(self, x):
        return x * self.weight[:, None, None]


class Exponential(nn.Module):
    def forward(self, x):
        return x.exp()

    def right_inverse(self, x):
        return x.log()


@dataclass(frozen=True)
class Gain(Stage):
    """A positive factor for each channel, which is trained as its logarithm."""

    channels: int

    kind = KIND
    schema = GainSchema
    groups = 1
    bias = False
    linear = False

    @property
    def in_channels(self):
        return self.channels

    @property
    def out_channels(self):
        return self.channels

    def tensors(self):
        return {"weight": TensorSpec((self.channels,))}

    def macs(self, size):
        return 0

    def module(self, split=False, **factory):
        return GainModule(self.channels, **factory)

    def read_kernel(self, module):
        return module.weight.detach()

    def write_kernel(self, module, kernel):
        module.weight.data.copy_(kernel)

    def start_training(self, module):
        parametrize.register_parametrization(module, "weight", Exponential())
        return True

    def fold(self, module):
        return fold_parametrizations(module)

    def compose(self, before, kernel):
        if before is None:
            before = torch.eye(self.channels, dtype=kernel.dtype)[:, :, None, None]
        return before.to(kernel.dtype) * kernel[:, None, None, None]

    def in_groups(self, groups):
        return Gain(self.channels * groups)

    def to_json(self):
        return {"channels": self.channels}

    @classmethod
    def from_json(cls, kind, values):
        return cls(values["channels"])


class Composite(Decomposition):
    """1×kw ‖ kh×1 with 2K filters, a gain, then 1×1."""

    name, source, rank_names = METHOD, "this test", ("K",)
    exact = False

    def group_refuse(self, spec):
        return "it has no two axes to share" if min(spec.kernel_size) < 2 else None

    def group_full_rank(self, spec):
        return (spec.out_channels,)

    def group_stages(self, spec, rank):
        (kh, kw), K = spec.kernel_size, rank[0]
        first = Parallel.centred(spec.replace(bias=False), {(1, kw): K, (kh, 1): K})
        return first, Gain(2 * K), ConvSpec(2 * K, spec.out_channels, bias=spec.bias)

    def group_factorize(self, weight, spec, rank, metric):
        """The leading singular vectors of the middle rows, and of the middle columns; the refit does the rest."""
        F, C, kh, kw = weight.shape
        basis = weight.new_zeros(2 * rank[0], C, kh, kw)
        for part, taps in zip(
            basis.chunk(2),
            ((..., slice(kh // 2, kh // 2 + 1), slice(None)), (..., slice(kw // 2, kw // 2 + 1))),
            strict=True,
        ):
            vectors = torch.linalg.svd(weight[taps].flatten(1), full_matrices=False).Vh[: rank[0]]
            part[taps][: len(vectors)] = vectors.unflatten(1, weight[taps].shape[1:])
        gains = weight.new_full((2 * rank[0],), 2.0)
        return [basis, gains, weight.new_zeros(F, 2 * rank[0], 1, 1)]


@pytest.fixture(autouse=True)
def axis(tmp_path, monkeypatch):
    """Both registered for one test, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    register(KIND)(Gain)
    register_method(Composite)
    yield
    STAGES.pop(KIND, None)
    REGISTRY.pop(METHOD, None)


def command(*arguments):
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    return exit_.value.code


def test_the_command_line_decomposes_reports_and_exports_it(capsys):
    layers = "--layers", "features.3", "--layers", "features.7"
    assert command("decompose", "digits_vgg", "--method", METHOD, "--rank", "6", *layers, "--out", "run") == 0
    planned = json.loads(Path("run/plan.json").read_text())["layers"]["features.3"]
    assert [stage["kind"] for stage in planned["stages"]] == ["parallel", KIND, "conv2d"]
    assert planned["stages"][0]["branches"][0] == {"out_channels": 6, "kernel_size": [1, 3], "offset": [1, 0]}
    assert planned["macs"][1] == 32 * 32 * (2 * 6 * 16 * 3 + 12 * 16)
    loaded = load_run("run")
    assert all(0 < error < 1 for error in provenance(loaded.model).errors.values()) or loaded.metrics["layers"]
    assert 0 < loaded.metrics["layers"][0]["error"] < 1
    chain = loaded.model.get_submodule("features.3")
    assert [type(module) for module in chain] == [ParallelConv2d, GainModule, nn.Conv2d]
    capsys.readouterr()
    assert command("report", "run", "--format", "json") == 0
    rows = json.loads(capsys.readouterr().out)["layers"]
    assert [(row["layer"], row["method"]) for row in rows] == [("features.3", METHOD), ("features.7", METHOD)]
    for form in ("onnx", "pt2"):
        assert command("export", "run", "--format", form, "--output", f"net.{form}") == 0
    assert command("profile", "run") == 0
    assert METHOD in (command("methods") or capsys.readouterr().out)


def test_a_run_needs_the_type_but_not_the_method():
    assert (
        command("decompose", "digits_vgg", "--method", METHOD, "--rank", "6", "--layers", "features.3", "--out", "run")
        == 0
    )
    x = torch.randn(1, 3, 32, 32)
    expected = load("run")(x)
    del REGISTRY[METHOD]
    assert torch.equal(load("run")(x), expected)
    del STAGES[KIND]
    with pytest.raises(RunError, match=f"unknown stage kind '{KIND}'"):
        load("run")


def network():
    torch.manual_seed(0)
    chain = FactoredLayer((ConvSpec(3, 6, (3, 3)), Gain(6), ConvSpec(6, 8, bias=True)))
    return nn.Sequential(chain, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3)).eval()


def test_the_training_form_computes_the_same_and_is_folded():
    model, x = network(), torch.randn(2, 3, 8, 8)
    names, expected = list(model.state_dict()), model(x)
    start_training(model)
    assert "0.1.parametrizations.weight.original" in model.state_dict()
    torch.testing.assert_close(model(x), expected)
    model(x).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad
    trained = model(x)
    copied = folded(model)
    assert "0.1.parametrizations.weight.original" in model.state_dict()
    fold(model)
    for plain in (model, copied):
        assert sorted(plain.state_dict()) == sorted(names)
        torch.testing.assert_close(plain(x), trained)
        assert all(p.requires_grad for p in plain.parameters())
    assert folded(model) is model


def test_fine_tuning_trains_the_training_form(tmp_path):
    model = network()
    before = model[0][1].weight.detach().clone()
    result = tune(tmp_path, model, epochs=2)
    last = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)["model"]
    assert "0.1.parametrizations.weight.original" in last
    assert result.best_epoch > 0
    assert type(model[0][1]) is GainModule
    assert not torch.equal(model[0][1].weight, before)
    assert (model[0][1].weight > 0).all()
    assert sorted(model.state_dict()) == sorted(network().state_dict())


def test_a_network_in_its_training_form_is_saved_folded():
    import cnncompress as cc

    model = cc.load_model("digits_vgg").model
    plan = cc.plan(model, torch.zeros(1, 3, 32, 32), method=METHOD, rank=6, layers=["features.3"], force=True)
    small = cc.decompose(model, plan)
    x = torch.randn(1, 3, 32, 32)
    expected = small(x)
    start_training(small)
    save(small, "run")
    assert small.get_submodule("features.3").in_training_form
    torch.testing.assert_close(load("run")(x), expected)
