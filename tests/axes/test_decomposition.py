"""A method registered in this file alone is listed, planned, fitted, saved, loaded, reported and exported."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import cnncompress as cc
from cnncompress.chains.compose import compose
from cnncompress.chains.spec import ConvSpec
from cnncompress.decompositions import REGISTRY, Decomposition, get_method
from cnncompress.decompositions.base import register
from cnncompress.errors import UsageError
from cnncompress.metrics import layer_metrics
from cnncompress.network.provenance import provenance
from tests.decompositions.helpers import decide, factored, images, made_up_statistics, randn, randomize, relative

NAME = "input-svd"
LAYERS = "--layers", "features.3", "--layers", "features.7"


@pytest.fixture(autouse=True)
def input_svd():
    """The method, registered for one test."""

    @register
    class InputSVD(Decomposition):
        """1×1 with C→K, then kh×kw with K→F."""

        name, source, rank_names = NAME, "this test", ("K",)
        options = {"share": 0.5}  # noqa: RUF012

        def group_refuse(self, spec):
            return "it has no window after which channels could be shared" if spec.pointwise or spec.linear else None

        def group_full_rank(self, spec):
            F, C, kh, kw = spec.weight_shape
            return (min(C, F * kh * kw),)

        def group_stages(self, spec, rank):
            return ConvSpec(spec.in_channels, rank[0]), spec.replace(in_channels=rank[0])

        def group_factorize(self, weight, spec, rank, metric):
            """SVD of the weight as [C, F·kh·kw]; the first factor gets `share` of the singular values' powers."""
            F, C, kh, kw = weight.shape
            U, S, Vh = torch.linalg.svd(weight.transpose(0, 1).flatten(1), full_matrices=False)
            U, S, Vh, share = U[:, : rank[0]], S[: rank[0]], Vh[: rank[0]], self.settings["share"]
            first = (U * S**share).mT.reshape(rank[0], C, 1, 1)
            return [first, (S[:, None] ** (1 - share) * Vh).reshape(rank[0], F, kh, kw).transpose(0, 1)]

    yield InputSVD
    REGISTRY.pop(NAME, None)


def test_the_fit_is_the_optimum_of_its_form():
    """Against numpy: the K largest singular values of the weight as [C, F·kh·kw] remain."""
    spec, rank = ConvSpec(6, 5, (3, 3)), 4
    weight, method = randn(*spec.weight_shape), get_method(NAME)
    dense = compose(method.stages(spec, (rank,)), method.factorize(weight, spec, (rank,)))
    matrix = weight.numpy().transpose(1, 0, 2, 3).reshape(6, -1)
    U, S, Vh = np.linalg.svd(matrix, full_matrices=False)
    expected = ((U[:, :rank] * S[:rank]) @ Vh[:rank]).reshape(6, 5, 3, 3).transpose(1, 0, 2, 3)
    np.testing.assert_allclose(dense.numpy(), expected, atol=1e-8)
    errors = method.errors(weight, spec, [(1,), (4,)])
    np.testing.assert_allclose(errors.numpy(), [np.sum(S[1:] ** 2), np.sum(S[4:] ** 2)], rtol=1e-8)


@pytest.mark.parametrize("metric", ["data-covariance", "kronecker", "mahalanobis"])
def test_it_is_fitted_in_a_metric_without_code_of_its_own(metric):
    spec, rank = ConvSpec(6, 8, (3, 3)), (3,)
    weight, method = randn(*spec.weight_shape), get_method(NAME)
    (form,) = layer_metrics(metric, spec, made_up_statistics(spec))
    chain = method.stages(spec, rank)
    plain, fitted, refined = (
        form.squared_error(weight - compose(chain, method.factorize(weight, spec, rank, metrics, refine)))
        for metrics, refine in ((None, 0), ([form], 1), ([form], 3))
    )
    assert refined <= fitted * (1 + 1e-9)
    assert fitted < plain


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 8, 3, padding=1),
        nn.Conv2d(6, 9, (5, 3), stride=2, dilation=(1, 2), groups=3),
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect", bias=False),
    ],
    ids=["plain", "grouped", "reflected"],
)
def test_the_full_rank_is_exact_on_every_geometry(layer):
    layer = randomize(layer.double())
    x = images(layer)
    with torch.no_grad():
        assert relative(factored(layer, decide(layer, NAME))(x), layer(x)) < 1e-10


def test_one_network_in_python():
    model, x = cc.load_model("digits_vgg").model, torch.randn(2, 3, 32, 32)
    planned = cc.plan(model, x[:1], method=NAME, rank=6, layers=["features.3"])
    small = cc.decompose(model, planned, progress=False)
    assert provenance(small).plan.layers["features.3"].method == NAME
    first, second = small.get_submodule("features.3")
    assert (first.kernel_size, first.out_channels, first.bias) == ((1, 1), 6, None)
    assert (second.in_channels, second.kernel_size) == (6, (3, 3))
    weight, dense = model.get_submodule("features.3").weight, small.get_submodule("features.3").to_dense()
    S = np.linalg.svd(weight.detach().double().transpose(0, 1).flatten(1).numpy(), compute_uv=False)
    error = np.sqrt(np.sum(S[6:] ** 2) / np.sum(S**2))
    assert relative(dense, weight) == pytest.approx(error, rel=1e-4)
    assert provenance(small).errors["features.3"] == pytest.approx(error, rel=1e-4)


def test_the_command_line_lists_it(done):
    (line,) = [line for line in done("methods").splitlines() if line.startswith(NAME)]
    for words in ("K", "share=0.5", "1×1 with C→K, then kh×kw with K→F.", "this test"):
        assert words in line


def stored(run="run"):
    return json.loads(Path(run, "plan.json").read_text())


def test_a_rank_is_fitted_saved_loaded_reported_and_exported(done):
    """K(C + 9F) weights for 9CF of each layer."""
    done("decompose", "digits_vgg", "--method", f"{NAME}:share=1", "--rank", "6", *LAYERS, "--out", "run")
    layer = stored()["layers"]["features.3"]
    C, F = 16, 16
    assert (layer["method"], layer["rank"], layer["options"]) == (NAME, [6], {"share": 1.0})
    assert [stage["kernel_size"] for stage in layer["stages"]] == [[1, 1], [3, 3]]
    assert layer["macs"] == [32 * 32 * 9 * C * F, 32 * 32 * 6 * (C + 9 * F)]
    rows = json.loads(done("report", "run", "--format", "json"))["layers"]
    assert [(row["layer"], row["method"], row["rank"]) for row in rows] == [
        ("features.3", NAME, [6]),
        ("features.7", NAME, [6]),
    ]
    assert all(0 < row["error"] < 1 for row in rows)
    first, _ = cc.load("run").get_submodule("features.3")
    gram = first.weight.detach().flatten(1) @ first.weight.detach().flatten(1).T  # share=1: U·diag(S) in the first
    assert (gram - gram.diagonal().diag()).abs().max() < 1e-4 * gram.diagonal().max()
    (shown,) = [line for line in done("report", "run", "--layers").splitlines() if line.startswith("features.3 ")]
    assert NAME in shown
    done("export", "run", "--format", "pt2", "--output", "net.pt2")
    assert Path("net.pt2").is_file()


def test_a_run_opens_where_it_is_not_registered(done):
    done("decompose", "digits_vgg", "--method", NAME, "--rank", "6", "--layers", "features.3", "--out", "run")
    x = torch.randn(1, 3, 32, 32)
    expected = cc.load("run")(x)
    del REGISTRY[NAME]
    assert torch.equal(cc.load("run")(x), expected)
    assert NAME in done("report", "run")
    with pytest.raises(UsageError, match=f"unknown method '{NAME}'"):
        get_method(NAME)


def test_a_budget_chooses_its_ranks(done):
    done("decompose", "digits_vgg", "--method", NAME, "--budget", "macs=0.6", "--out", "run")
    layers = stored()["layers"]
    assert layers
    assert {layer["method"] for layer in layers.values()} == {NAME}
    assert 0.55 < stored()["achieved"]["macs"] <= 0.6
    ranks = {layer["rank"][0] for layer in layers.values()}
    assert len(ranks) > 1
    rows = list(csv.DictReader(io.StringIO(done("report", "run", "--format", "csv"))))
    assert int(rows[1]["macs"]) / int(rows[0]["macs"]) == pytest.approx(stored()["achieved"]["macs"])


@pytest.mark.slow
def test_a_budget_chooses_between_it_and_others(done):
    """Where rows of a kernel share nothing but input channels do, it wins; elsewhere another method does."""
    Path("nets.py").write_text(NETS)
    methods = f"{NAME}+spatial-svd"
    done("decompose", "nets.py:build", "--input-size", "8", "--method", methods, "--budget", "macs=0.5", "--out", "run")
    chosen = {name: layer["method"] for name, layer in stored()["layers"].items()}
    assert chosen == {"shared": NAME, "separable": "spatial-svd"}


NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared, self.separable = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.pool, self.flatten, self.head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)

    def forward(self, x):
        x = x.repeat(1, 6, 1, 1)[:, :16]
        return self.head(self.flatten(self.pool(self.separable(self.shared(x).relu()).relu())))

def build():
    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():  # rank 4 over the input channels; rank 8 over the columns of all kernels
        net.shared.weight.copy_(torch.einsum("fkyx,kc->fcyx", torch.randn(16, 4, 3, 3), torch.randn(4, 16)) / 12)
        net.separable.weight.copy_(torch.einsum("fkx,kcy->fcyx", torch.randn(16, 8, 3), torch.randn(8, 16, 3)) / 20)
    return net
"""


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--method", "input-sdv"], 2, f"did you mean '{NAME}'"),
        (["--method", f"{NAME}:shar=1"], 2, "did you mean 'share'"),
        (["--method", f"{NAME}:share=much"], 2, f"option share of method {NAME} takes a number, not 'much'"),
        (["--method", f"{NAME}:K=0"], 2, f"option K of method {NAME} is a rank, at least 1"),
    ],
)
def test_what_it_does_not_take_is_said(arguments, code, words, refused):
    assert words in refused("decompose", "digits_vgg", "--rank", "4", *arguments, code=code)


def test_a_layer_that_it_does_not_take_is_kept_for_its_reason(done):
    layers = "--layers", "features.3", "--layers", "classifier.6"
    text = done("decompose", "digits_vgg", "--method", NAME, "--rank", "4", *layers, "--dry-run")
    (kept,) = [line for line in text.splitlines() if line.startswith("classifier.6 ")]
    assert "it has no window after which channels could be shared" in kept


def test_inspect_says_where_it_applies(done):
    """Letters stand for the methods of a layer: convolutions have it, Linears do not."""
    text = done("inspect", "digits_vgg")
    letters = {line.split(":")[0]: line for line in text.splitlines() if ": " in line}
    by_layer = {line.split()[0]: line.split()[-1] for line in text.splitlines() if line.startswith(("feat", "class"))}
    assert NAME in letters[by_layer["features.3"]]
    assert NAME not in letters[by_layer["classifier.0"]]
