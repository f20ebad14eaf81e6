"""Chains fitted in network order, against brute-force least squares and against what they are meant to beat."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cnncompress.correction import decompose_in_order, sequential
from cnncompress.correction.graph import trace_graph, walk
from cnncompress.correction.sequential import lacking, outputs_at, target_of
from cnncompress.errors import CompressError, UnsupportedLayerError, UsageError
from cnncompress.factored import FactoredLayer, clone, layers_of, provenance
from cnncompress.fitting import decompose
from cnncompress.linalg import oas_shrinkage
from cnncompress.planning import Choice, plan
from cnncompress.runs import load, save
from cnncompress.spec import ConvSpec
from cnncompress.statistics import collect_statistics
from cnncompress.statistics.patches import gather_patches
from tests.correction.networks import Concat, Residual, Tokens, made, natural, plain
from tests.decompositions.helpers import randn, relative

NETWORKS = {"residual": Residual, "concat": Concat, "tokens": Tokens, "plain": plain}


def planned(model, x, metric="data-covariance", rank=0.4, **request):
    """A plan, and the statistics that its metric was given."""
    statistics = collect_statistics(model, [x], metric, progress=False)
    request = {"method": "auto", "force": True, **request}
    return plan(model, x, rank=rank, metric=metric, statistics=statistics, **request), statistics


def in_order(model, found, x, statistics=None, **options):
    return decompose_in_order(model, found, x, statistics=statistics, progress=False, **options)


def lost(model, small, x) -> float:
    """Squared error of the outputs, as a share of their variance."""
    with torch.no_grad():
        y = model(x)
        return float((small(x) - y).square().sum() / (y - y.mean(0)).square().sum())


def layer_values(model: nn.Module, x: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Input and output of each layer's first call, chains included."""
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def watch(name):
        def hook(module, args, output):
            found.setdefault(name, (args[0].clone(), output.clone()))

        return hook

    watched = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear | FactoredLayer)]
    handles = [module.register_forward_hook(watch(name)) for name, module in watched]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


# --- W' ---


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("rows", [4, 30, 500])
def test_the_target_is_a_least_squares_solution(groups, rows):
    """Stacked under the samples: one made-up sample an input, of which the original network makes what it does."""
    spec = ConvSpec(2 * groups, 4 * groups, (2, 3), groups=groups)
    weight, n = randn(*spec.weight_shape), 12
    x = randn(rows, groups, n, seed=1) * torch.exp(randn(groups, n, seed=2)) + randn(groups, n, seed=3)
    y = randn(rows, 4 * groups, seed=4) + 2
    found = target_of(weight, spec, x, y, 7)
    for g in range(groups):
        X, Y = x[:, g].numpy(), y[:, 4 * g : 4 * g + 4].numpy()
        X, Y = X - X.mean(0), Y - Y.mean(0)
        moment = X.T @ X / rows
        share = oas_shrinkage(torch.from_numpy(moment), rows)
        level = np.trace(moment) / n
        W = weight[4 * g : 4 * g + 4].flatten(1).numpy()
        stacked = np.vstack([np.sqrt((1 - share) / rows) * X, np.sqrt(share * level) * np.eye(n)])
        wanted = np.vstack([np.sqrt((1 - share) / rows) * Y, np.sqrt(share * level) * W.T])
        expected = np.linalg.lstsq(stacked, wanted, rcond=None)[0].T
        assert relative(found.weight[4 * g : 4 * g + 4].flatten(1), torch.from_numpy(expected)) < 1e-8
        torch.testing.assert_close(found.statistics.moment[g], torch.from_numpy(moment).float(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.statistics.mean[g], x[:, g].mean(0).float())
    assert found.weight.shape == weight.shape
    torch.testing.assert_close(found.output, y.mean(0))
    assert (found.statistics.images, found.statistics.rows) == (7, rows)


def test_the_target_of_many_samples_is_plain_regression():
    """With a constant in the regression, as the bias takes the mean."""
    spec, x = ConvSpec(5, 3), randn(20000, 1, 5, seed=1) * torch.tensor([4.0, 2.0, 1.0, 1.0, 0.5]) + 1
    y = x[:, 0] @ randn(5, 3, seed=2) + 0.1 * randn(20000, 3, seed=3) + 4
    expected = np.linalg.lstsq(np.hstack([x[:, 0].numpy(), np.ones((20000, 1))]), y.numpy(), rcond=None)[0][:5].T
    found = target_of(randn(*spec.weight_shape, seed=5), spec, x, y, 100)
    assert relative(found.weight.flatten(1), torch.from_numpy(expected)) < 0.01


@pytest.mark.parametrize("rows", [2, 9, 200])
@pytest.mark.parametrize("groups", [1, 2])
def test_with_unchanged_inputs_the_target_is_the_weight(rows, groups):
    layer = nn.Conv2d(4, 6, 3, groups=groups).double()
    spec = ConvSpec(4, 6, (3, 3), groups=groups, bias=True)
    x = randn(rows, 4, 3, 3)
    patches = gather_patches(x, spec, torch.arange(rows))
    found = target_of(layer.weight.detach(), spec, patches, layer(x).detach().flatten(1), rows)
    assert relative(found.weight, layer.weight) < 1e-9


def test_inputs_that_do_not_vary_leave_the_weight():
    spec, weight = ConvSpec(3, 2), randn(2, 3, 1, 1)
    found = target_of(weight, spec, torch.ones(5, 1, 3), torch.ones(5, 2), 5)
    assert relative(found.weight, weight) < 1e-9


@pytest.mark.parametrize("shape", [(3, 6, 4, 5), (3, 7, 6), (5, 6)])
def test_outputs_at_positions(shape):
    y = randn(*shape)
    spec = ConvSpec(2, 6, linear=len(shape) != 4)
    rows = y.permute(0, 2, 3, 1).reshape(-1, 6) if len(shape) == 4 else y.reshape(-1, 6)
    index = torch.tensor([0, 3, len(rows) - 1])
    assert torch.equal(outputs_at(y, spec, index), rows[index].float())


# --- the fit of a network ---


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
    small = in_order(model, found, x, statistics, refit=refit)
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


@pytest.mark.parametrize("name", ["residual", "concat", "plain"])
def test_it_pays_on_other_images(name):
    assert gain(name, 32) < 0.95


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
    errors = [provenance(in_order(model, found, x, statistics, refine=r)).errors["0"] for r in (0, 1, 4)]
    assert errors[0] >= errors[1] >= errors[2]
    assert errors[2] < errors[0]
    assert provenance(in_order(model, found, x, statistics)).errors["0"] == pytest.approx(errors[2])


# --- sums ---


class Sum(nn.Module):
    """A branch of two layers, added to a shortcut of one."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 8, 3, padding=1)
        self.short = nn.Conv2d(3, 8, 3, padding=1)
        if norm:
            self.norm = nn.BatchNorm2d(8)

    def summed(self, x):
        y = self.second(self.first(x).relu())
        return (self.norm(y) if hasattr(self, "norm") else y) + self.short(x)

    def forward(self, x):
        return self.summed(x).mean((2, 3))


@pytest.mark.parametrize("norm", [False, True])
def test_a_branch_makes_up_for_the_other_one(norm, monkeypatch):
    model, x = made(Sum(norm)), natural(40)
    rules = {"second": Choice("channel-svd", 6), "short": Choice("channel-svd", 2)}
    found, statistics = planned(model, x, per_layer=rules, layers=["second", "short"])
    with_it = in_order(model, found, x, statistics)
    monkeypatch.setattr(sequential, "lacking", lambda *args: None)
    without = in_order(model, found, x, statistics)
    others = natural(40, seed=5)
    for images in (x, others):
        wanted = model.summed(images)
        assert relative(with_it.summed(images), wanted) < 0.9 * relative(without.summed(images), wanted)


@pytest.mark.parametrize("norm", [False, True])
def test_what_is_lacking_restores_the_sum(norm):
    model, x = made(Sum(norm)), natural(5)
    other = clone(model)
    with torch.no_grad():
        other.short.weight.mul_(0.5)
    modules, seen = dict(model.named_modules()), {}

    def visit(node, values, others):
        seen[node.target] = lacking(node, modules, values, others)

    walk(trace_graph(model), model, other, x, visit)
    with torch.no_grad():
        second = model.second(model.first(x).relu()) + seen["second"]
        got = (model.norm(second) if norm else second) + other.short(x)
        assert relative(got, model.summed(x)) < 0.03
        assert relative(other.summed(x), model.summed(x)) > 0.1
    assert seen["first"] is None
    assert seen["short"] is None  # what it is added to comes after it


def test_a_channel_that_the_normalisation_makes_small_is_left_alone():
    model, x = made(Sum(norm=True)), natural(5)
    with torch.no_grad():
        model.norm.weight[0] = 1e-6
        model.norm.weight[1] = 0
    other, modules, seen = clone(model), dict(model.named_modules()), {}
    with torch.no_grad():
        other.short.weight.mul_(0.5)

    def visit(node, values, others):
        seen[node.target] = lacking(node, modules, values, others)

    walk(trace_graph(model), model, other, x, visit)
    size = seen["second"].abs().amax((0, 2, 3))
    assert float(size[0]) < 1e-3 * float(size[2:].max())
    assert float(size[1]) == 0


class Odd(nn.Module):
    """Sums with a parameter, with one value a channel, with a size, and after a normalisation without statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(4))
        self.shift = nn.Parameter(torch.ones(1, 3, 1, 1))
        self.norm = nn.BatchNorm2d(3, track_running_stats=False)
        self.head = nn.Linear(3, 4)

    def forward(self, x):
        y = self.a(x) + self.shift
        y = self.b(y) + y.mean((2, 3), keepdim=True)
        y = self.c(y) + y.size(1)
        y = self.norm(self.d(y)) + y
        return self.head(y.mean((2, 3)))


def test_sums_of_other_shapes_are_no_obstacle():
    model, x = Odd().eval(), natural(8)
    found, statistics = planned(model, x, rank=0.5)
    small = in_order(model, found, x, statistics)
    assert set(provenance(small).errors) == {"a", "b", "c", "d", "head"}
    assert torch.isfinite(small(x)).all()


# --- networks and layers of other kinds ---


@pytest.mark.parametrize("name", ["concat", "plain"])
def test_without_a_graph_the_result_is_the_same(name, monkeypatch):
    model, x = made(NETWORKS[name]()), natural(5)
    found, statistics = planned(model, x)
    expected = in_order(model, found, x, statistics)
    monkeypatch.setattr(sequential, "trace_graph", lambda model: None)
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
    monkeypatch.setattr(sequential, "WIDE", 1)
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
    found, statistics = planned(model, x)
    small = in_order(model, found, x, statistics)
    save(small, tmp_path / "run", source=f"{tmp_path / 'net.py'}:build")
    again = load(tmp_path / "run")
    assert torch.equal(again(x), small(x))
    assert provenance(again).plan.layers == found.layers
    assert provenance(again).errors == pytest.approx(provenance(small).errors)
