"""The most accurate plan within a budget: what it costs, what it changes, what it keeps and why."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from cnncompress.chains.plan import Budget
from cnncompress.decompositions import get_method
from cnncompress.errors import UsageError
from cnncompress.fitting import decompose
from cnncompress.network.divergence import Answers
from cnncompress.network.profile import profile
from cnncompress.planning import (
    Choice,
    candidates,
    plan,
)
from cnncompress.statistics import collect_statistics
from tests.decompositions.helpers import randn, randomize
from tests.orders import never_rises
from tests.planning.networks import X, images

LAYERS = ["0", "3", "5", "7", "10"]


def costs(model, found, x=X) -> dict[str, float]:
    """The shares that the network of a plan really has, from the network itself."""
    before, after = profile(model, x), profile(decompose(model, found, progress=False), x)
    return {"macs": after.total_macs / before.total_macs, "params": after.params / before.params}


@pytest.fixture(scope="module")
def deep() -> nn.Sequential:
    """Eight layers: one rank of one of them is a 400th of the whole."""
    layers = [nn.Conv2d(4 if i == 0 else 32, 32, 3, padding=1, bias=False) for i in range(8)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)).eval()
    return randomize(model)


@pytest.mark.parametrize(
    "shares",
    [
        {"macs": 0.2},
        {"params": 0.3},
        *(pytest.param(s, marks=pytest.mark.slow) for s in ({"macs": 0.75}, {"macs": 0.4}, {"params": 0.6})),
    ],
    ids=str,
)
def test_the_cost_is_within_one_percent_under_the_budget(deep, shares):
    x = images(2, channels=4)
    found = plan(deep, x, method="spatial-svd+channel-svd", budget=Budget(**shares))
    real = costs(deep, found, x)
    assert found.achieved == pytest.approx(real)
    ((name, share),) = shares.items()
    assert 0.99 * share < real[name] <= share


@pytest.mark.slow
@pytest.mark.parametrize("shares", [{"macs": 0.5, "params": 0.3}, {"macs": 0.3, "params": 0.8}], ids=str)
def test_several_budgets_hold_together(model, shares):
    found = plan(model, X, budget=Budget(**shares))
    real = costs(model, found)
    assert all(real[name] <= share for name, share in shares.items())
    assert any(real[name] > 0.97 * share for name, share in shares.items())
    alone = [sum(plan(model, X, budget=Budget(**{n: s})).rises.values()) for n, s in shares.items()]
    assert sum(found.rises.values()) >= max(alone) * (1 - 1e-9)


@pytest.mark.slow
def test_a_larger_budget_is_never_worse(model):
    rises = [sum(plan(model, X, budget=Budget(macs=b)).rises.values()) for b in (0.2, 0.4, 0.6, 0.8, 1.0)]
    assert never_rises(rises)
    assert rises[-1] == 0


def test_with_the_whole_budget_nothing_changes(model):
    found = plan(model, X, budget=Budget(macs=1.0))
    assert not found.layers
    assert found.achieved == {"macs": 1, "params": 1}


@pytest.mark.few(1)
@pytest.mark.parametrize("shares", [{"macs": 0.001}, {"params": 0.01}, {"macs": 0.5, "params": 0.001}], ids=str)
def test_what_cannot_be_met_is_refused_with_what_can(model, shares):
    with pytest.raises(UsageError, match="no plan meets the budget") as raised:
        plan(model, X, budget=Budget(**shares))
    assert "\n" not in str(raised.value)
    reachable = {n: float(re.search(rf"go down to .*?{n}=([\d.]+)", str(raised.value))[1]) for n in shares}
    for name, share in reachable.items():
        achieved = plan(model, X, budget=Budget(**{name: share})).achieved[name]
        assert share - 0.001 <= achieved <= share


def test_layers_that_cannot_change_limit_what_can_be_met(model):
    total = profile(model, X)
    fixed = 1 - sum(p.macs for p in total.layers if p.layer == "3") / total.total_macs
    with pytest.raises(UsageError, match="no plan meets"):
        plan(model, X, budget=Budget(macs=0.99 * fixed), layers=["3"])
    assert set(plan(model, X, budget=Budget(macs=fixed + 0.1), layers=["3"]).layers) == {"3"}


@pytest.mark.parametrize("metric", ["frobenius", "kronecker"])
def test_every_layer_is_changed_or_kept_with_a_reason(model, metric):
    statistics = None if metric == "frobenius" else collect_statistics(model, [X], metric, progress=False)
    found = plan(model, X, budget=Budget(macs=0.5), metric=metric, statistics=statistics, skip=["5"])
    assert sorted([*found.layers, *found.kept]) == sorted(LAYERS)
    assert found.kept["5"] == "skipped on request"
    assert all(len(reason.split()) > 2 and "\n" not in reason for reason in found.kept.values())
    assert set(found.rises) == set(found.layers)
    assert all(rise > 0 for rise in found.rises.values())
    assert list(found.layers) == [name for name in LAYERS if name in found.layers]
    biased = {p.chain[-1].bias for n, p in found.layers.items() if n == "3"}
    assert biased <= {metric != "frobenius"}


def test_patterns(model):
    found = plan(model, X, budget=Budget(macs=0.7), layers=["3", "5", "7"], skip=["7"])
    assert set(found.layers) <= {"3", "5"}
    assert found.kept["0"] == found.kept["10"] == "not selected"
    assert found.kept["7"] == "skipped on request"
    with pytest.raises(UsageError, match="matches no layer"):
        plan(model, X, budget=Budget(macs=0.7), layers=["conv*"])


def test_a_method_for_each_layer(model):
    rules = {"3": Choice("tucker2"), "5": Choice("channel-svd"), "7": Choice("svd")}
    found = plan(model, X, budget=Budget(macs=0.2), per_layer=rules)
    assert {n: p.method for n, p in found.layers.items() if n in rules} == {"3": "tucker2", "5": "channel-svd"}
    assert found.kept["7"] == "a convolution takes channel-svd or spatial-svd"
    assert 0.95 * 0.2 < costs(model, found)["macs"] <= 0.2
    fixed = plan(model, X, budget=Budget(macs=0.99), method="channel-svd:K=2", layers=["0"])
    assert {name: p.rank for name, p in fixed.layers.items()} == {"0": (2,)}


def test_one_method_for_all(model):
    found = plan(model, X, budget=Budget(macs=0.5), method="spatial-svd:first=horizontal")
    assert {p.method for p in found.layers.values()} == {"spatial-svd"}
    assert all(p.chain[0].kernel_size == (1, 3) for p in found.layers.values())
    assert "Linear" in found.kept["10"]


def test_several_methods_to_choose_from(model):
    def methods(text: str) -> set[str]:
        return {p.method for p in plan(model, X, budget=Budget(macs=0.2), method=text).layers.values()}

    assert methods("spatial-svd+channel-svd") == {"spatial-svd", "channel-svd"}
    assert methods("tucker2+cp:iterations=3") <= {"tucker2", "cp"}
    assert "cp" in methods("auto")
    with pytest.raises(UsageError, match="unknown method 'spatial'"):
        methods("spatial+cp")
    with pytest.raises(UsageError, match=r"cp\+svd: only a budget or --max-drop chooses from several; give one"):
        plan(model, X, method="cp+svd", rank=4)


def test_fits_that_take_long_are_for_those_who_ask(monkeypatch, model):
    """Layers 3 and 5 have 9216 and 11520 weights."""
    monkeypatch.setitem(candidates.MOST_ENTRIES, "cp", 5000)

    def with_cp(text: str) -> bool:
        found = plan(model, X, budget=Budget(macs=0.4), method=text, layers=["3", "5"])
        return any(p.method == "cp" for p in found.layers.values())

    assert not with_cp("auto")
    assert with_cp("spatial-svd+cp")


@pytest.mark.parametrize("multiple", [4, 8])
def test_ranks_are_multiples(model, multiple):
    found = plan(model, X, budget=Budget(macs=0.25), multiple=multiple)
    assert len(found.layers) > 1
    assert all(k % multiple == 0 for p in found.layers.values() for k in p.rank)


def test_a_planted_layer_is_compressed_for_free():
    """One of three equal layers is a sum of two products of a column and a row; the budget needs no other."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))).eval()
    planted = torch.einsum("kcy,fkx->fcyx", randn(2, 16, 3, seed=1), randn(16, 2, 3, seed=2))
    with torch.no_grad():
        model[1].weight.copy_(planted)
    x = images(channels=16)
    found = plan(model, x, budget=Budget(macs=0.75))
    assert set(found.layers) == {"1"}
    assert found.layers["1"].rank == (2,)
    assert found.layers["1"].options["first"] == "vertical"
    assert found.rises["1"] < 1e-10
    torch.testing.assert_close(decompose(model, found, progress=False)(x), model(x), rtol=1e-3, atol=1e-3)


def test_nothing_is_left_behind_in_the_network(model):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modules, x = list(model.modules()), X.clone()
    model.train()
    plan(model, X, budget=Budget(macs=0.4), images=X)
    assert all(m.training for m in model.modules())
    model.eval()
    assert list(model.modules()) == modules
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(X, x)


def test_planning_is_deterministic(model):
    statistics = collect_statistics(model, [X], "kronecker", progress=False)
    request = {"metric": "kronecker", "statistics": statistics, "images": X, "budget": Budget(macs=0.45)}
    assert plan(model, X, **request) == plan(model, X, **request)


def test_shared_weights_are_kept():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
            self.two.weight = self.one.weight
            self.free = nn.Conv2d(16, 16, 3, padding=1)

        def forward(self, x):
            return self.free(self.two(self.one(x))).mean((2, 3))

    found = plan(Tied(), images(channels=16), budget=Budget(macs=0.8))
    assert set(found.layers) == {"free"}
    assert "shared with two" in found.kept["one"]
    assert "shared with one" in found.kept["two"]


def test_a_metric_without_statistics_and_latency_without_times(model):
    with pytest.raises(UsageError, match="calibration images"):
        plan(model, X, budget=Budget(macs=0.5), metric="kronecker")
    with pytest.raises(UsageError, match="latency"):
        plan(model, X, budget=Budget(latency=0.5))


def test_two_budgets_that_exclude_each_other_have_one_remedy(model):
    with pytest.raises(UsageError, match="no plan meets the budget") as raised:
        plan(model, X, budget=Budget(macs=0.001, params=0.001))
    found = re.search(r"and together to macs=([\d.]+) params=([\d.]+)", str(raised.value))
    together = Budget(macs=float(found[1]), params=float(found[2]))
    assert all(value <= together.shares[n] for n, value in plan(model, X, budget=together).achieved.items())


def test_a_calibrated_plan_predicts_nats(model):
    found = plan(model, X, budget=Budget(macs=0.5), images=X)
    small = decompose(model, found, progress=False)
    moved = Answers(model, X).divergence(small)
    assert sum(found.rises.values()) / 30 < moved < 30 * sum(found.rises.values())


def test_choosing_the_method_pays(model):
    """Auto looks at every method that a single one is; so it predicts no more."""
    rises = {m: sum(plan(model, X, budget=Budget(macs=0.6), method=m).rises.values()) for m in ("auto", "channel-svd")}
    assert rises["auto"] <= rises["channel-svd"] * (1 + 1e-9)
    assert get_method("channel-svd").sliced
