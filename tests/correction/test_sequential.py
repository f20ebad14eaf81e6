"""Chains fitted in network order, against brute force and against what they are meant to beat."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cnncompress.chains.modules import FactoredLayer
from cnncompress.correction import refit as refitting
from cnncompress.correction import sequential
from cnncompress.errors import CompressError, UnsupportedLayerError, UsageError
from cnncompress.fitting import decompose
from cnncompress.network.graph import trace_graph
from cnncompress.network.layers import layers_of
from cnncompress.network.provenance import provenance
from cnncompress.planning import plan
from cnncompress.runs import load, save
from tests.correction.fits import NETWORKS, in_order, layer_values, lost, planned
from tests.correction.networks import Tokens, made, natural, plain
from tests.decompositions.helpers import relative
from tests.orders import never_rises


@pytest.mark.parametrize("rank", [2, 5])
def test_a_chain_comes_near_the_best_one_for_its_real_inputs(rank):
    """The second layer's error against reduced-rank regression from what the first chain really gives."""
    model = made(
        nn.Sequential(nn.Conv2d(3, 10, 3), nn.ReLU(), nn.Conv2d(10, 12, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    )
    x = natural(40, size=8)
    found, statistics = planned(model, x, method="channel-svd", rank=rank)
    small = in_order(model, found, x, statistics)
    y = layer_values(model, x)["2"][1].movedim(1, -1).reshape(-1, 12).double().numpy()
    inputs, outputs = layer_values(small, x)["2"]
    assert isinstance(small.get_submodule("2"), FactoredLayer)
    X = F.unfold(inputs, 3).transpose(1, 2).reshape(-1, 90).double().numpy()
    X, Y = X - X.mean(0), y - y.mean(0)
    fitted = X @ np.linalg.lstsq(X, Y, rcond=1e-8)[0]
    best = ((Y - fitted) ** 2).sum() + (np.linalg.svd(fitted, compute_uv=False)[rank:] ** 2).sum()
    error = ((outputs.movedim(1, -1).reshape(-1, 12).double().numpy() - y) ** 2).sum()
    assert best <= error * (1 + 1e-6)
    assert error < 1.1 * best
    plainly = layer_values(decompose(model, found, statistics=statistics, progress=False), x)["2"][1]
    assert error < 0.95 * ((plainly.movedim(1, -1).reshape(-1, 12).double().numpy() - y) ** 2).sum()


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_attached_and_what_is_left_alone(name):
    model, x = made(NETWORKS[name]()), natural()
    found, statistics = planned(model, x, "kronecker")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    kept, copied = x.clone(), {k: v.gradient.clone() for k, v in statistics.items()}
    model.train()
    small = in_order(model, found, x, statistics)
    assert all(m.training for m in (*model.modules(), *small.modules()))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert provenance(model) is None
    assert torch.equal(x, kept)
    assert all(torch.equal(v.gradient, copied[k]) for k, v in statistics.items())
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in small.parameters()}
    told = provenance(small)
    assert told.plan.layers == found.layers
    assert set(told.errors) == set(told.rises) == set(found.layers) == set(layers_of(model))
    assert all(0 <= error < 1 for error in told.errors.values())
    assert all(rise >= 0 for rise in told.rises.values())
    assert all(isinstance(small.get_submodule(n), FactoredLayer) for n in found.layers)
    again = in_order(model, found, x, statistics)
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_at_full_rank_the_network_is_reproduced(name):
    model, x = made(NETWORKS[name]()), natural(12)
    found, statistics = planned(model, x, rank=1.0)
    small = in_order(model, found, x, statistics)
    assert relative(small(x), model(x)) < 1e-4
    assert max(provenance(small).errors.values()) < 1e-3


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("name", ["concat", "plain"])
def test_mean_outputs_agree(name, refit):
    """All positions are looked at, so that the mean is that of all."""
    model, x = made(NETWORKS[name]()), natural(7)
    found, statistics = planned(model, x, rank=0.2)
    small = in_order(model, found, x, statistics, refit=refit, rounds=1)
    before, after = layer_values(model, x), layer_values(small, x)
    for layer in found.layers:
        dims = [d for d in range(before[layer][1].dim()) if d != 1]
        expected = before[layer][1].mean(dims)
        scale = float(before[layer][1].abs().max())
        torch.testing.assert_close(after[layer][1].mean(dims), expected, rtol=0, atol=1e-5 * scale)
    plainly = layer_values(decompose(model, found, statistics=statistics, progress=False), x)
    last = list(found.layers)[-1]
    assert not torch.allclose(plainly[last][1].mean(0), before[last][1].mean(0), rtol=0, atol=1e-3)


def gain(name: str, images: int, seeds: int = 3) -> float:
    """The error on other images, as a multiple of that of the same plan fitted without order: geometric mean."""
    logs = []
    for seed in range(seeds):
        model, x, others = made(NETWORKS[name](), seed), natural(images, seed), natural(32, 1000 + seed)
        found, statistics = planned(model, x)
        plainly = decompose(model, found, statistics=statistics, progress=False)
        logs.append(math.log(lost(model, in_order(model, found, x, statistics), others) / lost(model, plainly, others)))
    return math.exp(sum(logs) / seeds)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["residual", "concat", "plain"])
def test_it_pays_on_other_images(name):
    assert gain(name, 32, seeds=2) < 0.95


@pytest.mark.slow
@pytest.mark.parametrize("images", [1, 2, 4])
def test_a_few_images_do_no_harm(images):
    """On average over networks; a single network may lose or gain by its few images."""
    ratios = [gain(name, images) for name in ("residual", "concat", "plain")]
    assert math.prod(ratios) ** (1 / 3) < 1.1


@pytest.mark.parametrize("name", ["residual", "concat", "plain"])
def test_the_refit_beats_the_biases_alone(name):
    model, x = made(NETWORKS[name]()), natural(64)
    found, statistics = planned(model, x)
    errors = [lost(model, in_order(model, found, x, statistics, refit=r), x) for r in (True, False)]
    assert errors[0] < errors[1] < lost(model, decompose(model, found, statistics=statistics, progress=False), x)


def test_more_sweeps_lower_the_error():
    model, x = made(nn.Sequential(nn.Conv2d(3, 12, 3), nn.Flatten())), natural(10)
    found, statistics = planned(model, x, rank=0.3)
    sweeps = (0, 1, refitting.SWEEPS)
    errors = [provenance(in_order(model, found, x, statistics, refine=r)).errors["0"] for r in sweeps]
    assert never_rises(errors)
    assert errors[2] < errors[0]
    assert provenance(in_order(model, found, x, statistics)).errors["0"] == pytest.approx(errors[2])


# --- networks and layers of other kinds ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_seed_draws_the_positions(dtype, monkeypatch):
    monkeypatch.setattr(refitting, "POSITIONS_PER_IMAGE", 8)
    model, x = made(NETWORKS["plain"]()).to(dtype), natural().to(dtype)
    found, statistics = planned(model, x)
    results = [in_order(model, found, x, statistics, seed=seed).state_dict() for seed in (1, 1, 2)]
    same = [all(torch.equal(results[0][name], other[name]) for name in other) for other in results]
    assert same == [True, True, False]


@pytest.mark.parametrize("name", ["concat", "plain"])
def test_without_a_graph_the_result_is_the_same(name, monkeypatch):
    model, x = made(NETWORKS[name]()), natural(5)
    found, statistics = planned(model, x)
    expected = in_order(model, found, x, statistics, rounds=1)  # what is rectified is seen in the graph
    monkeypatch.setattr(sequential, "trace_graph", lambda model, example: None)
    small = in_order(model, found, x, statistics)
    torch.testing.assert_close(small(x), expected(x), rtol=1e-4, atol=1e-5)
    assert provenance(small).errors == pytest.approx(provenance(expected).errors, rel=1e-3)


def test_a_network_that_cannot_be_followed():
    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = made(plain())

        def forward(self, x):
            return self.net(x) if float(x.sum()) < 1e9 else x

    model, x = Looks().eval(), natural(16)
    assert trace_graph(model) is None
    found, statistics = planned(model, x)
    small = in_order(model, found, x, statistics)
    assert lost(model, small, x) < lost(model, decompose(model, found, statistics=statistics, progress=False), x)


def test_a_layer_that_is_called_twice_keeps_the_fit_of_the_plan():
    model, x = made(Tokens()), natural(16)
    found, statistics = planned(model, x)
    small, plainly = in_order(model, found, x, statistics, refine=1), decompose(model, found, statistics=statistics)
    pairs = list(zip(small.twice.parameters(), plainly.twice.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(small.down[0].weight, plainly.down[0].weight)
    assert lost(model, small, natural(16, 5)) < 1.1 * lost(model, plainly, natural(16, 5))


def test_linear_layers_on_sequences():
    """Every token is a sample: the errors of the layers, and the mean over tokens."""
    model, x = made(Tokens()), natural(16)
    found, statistics = planned(model, x, rank=0.3, layers=["up", "down"])
    small = in_order(model, found, x, statistics)
    before, after = layer_values(model, x), layer_values(small, x)
    assert before["down"][1].dim() == 3
    torch.testing.assert_close(after["down"][1].mean((0, 1)), before["down"][1].mean((0, 1)), rtol=0, atol=1e-5)
    plainly = layer_values(decompose(model, found, statistics=statistics, progress=False), x)
    exact = before["down"][1]
    assert float((after["down"][1] - exact).square().sum()) < float((plainly["down"][1] - exact).square().sum())


@pytest.mark.parametrize("name", ["residual", "concat"])
def test_wide_layers_have_their_biases_corrected_only(name, monkeypatch):
    model, x = made(NETWORKS[name]()), natural(6)
    found, statistics = planned(model, x)
    expected = in_order(model, found, x, statistics, refit=False)
    monkeypatch.setattr(refitting, "WIDEST_REFIT", 1)
    small = in_order(model, found, x, statistics)
    if name == "concat":
        torch.testing.assert_close(small(x), expected(x))
    weights = [[p for p in net.parameters() if p.dim() > 1] for net in (small, expected)]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_a_plan_under_frobenius_needs_no_statistics():
    model, x = made(plain()), natural(16)
    found = plan(model, x, rank=0.4, force=True, images=x)
    assert lost(model, in_order(model, found, x), x) < lost(model, decompose(model, found, progress=False), x)
    assert provenance(in_order(model, found, x)).rises == {}


def test_chains_without_a_bias_are_refused():
    model, x = made(plain()), natural()
    found = plan(model, x, rank=0.4, force=True)
    assert not found.layers["5"].chain[-1].bias
    with pytest.raises(UnsupportedLayerError, match="no bias"):
        in_order(model, found, x)


def test_errors_are_in_one_line():
    model, x = made(plain()), natural()
    found, _ = planned(model, x)
    with pytest.raises(UsageError, match="calibration images") as raised:
        in_order(model, found, x, refit=False)
    assert "\n" not in str(raised.value)
    with torch.no_grad():
        model[3].weight[0, 0, 0, 0] = math.nan
    with pytest.raises(CompressError, match="NaN"):
        in_order(model, found, x)


FACTORY = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, groups=2, bias=False),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )
"""


def test_saved_and_loaded_it_gives_the_same(tmp_path):
    (tmp_path / "net.py").write_text(FACTORY)
    names: dict = {}
    exec(FACTORY, names)
    model, x = made(names["build"]()), natural()
    found, statistics = planned(model, x, layers=["0", "6"])
    small = in_order(model, found, x, statistics, adjust=["3"])
    assert not torch.equal(small.get_submodule("3").weight, model.get_submodule("3").weight)
    save(small, tmp_path / "run", source=f"{tmp_path / 'net.py'}:build")
    again = load(tmp_path / "run", trust_code=True)
    assert torch.equal(again(x), small(x))
    assert provenance(again).plan.layers == found.layers
    assert provenance(again).errors == pytest.approx(provenance(small).errors)


def test_whatever_a_plan_keeps_may_be_named_for_adjustment():
    """What a forward pass computes beside the layers is kept under a name that is no layer's."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.more = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
            self.own = nn.Parameter(0.1 * torch.randn(16, 16, 3, 3))

        def forward(self, x):
            return nn.functional.conv2d(self.more(self.conv(x)), self.own).mean((2, 3))

    model, x = made(Net()), natural()
    found, statistics = planned(model, x, layers=["more"])
    assert set(found.kept) > {"conv"}
    assert not set(found.kept) <= set(dict(model.named_modules()))
    small = in_order(model, found, x, statistics, adjust=found.kept)
    assert small(x).shape == model(x).shape
