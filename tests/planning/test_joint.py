"""Layers that share channels: their joint solution against all there are."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import cnncompress as cc
from cnncompress.chains.plan import Budget
from cnncompress.errors import UnreachableError
from cnncompress.network.subject import look_at
from cnncompress.planning import Choice, Guide, Planner, make_candidates
from cnncompress.planning.budget import STAYS
from cnncompress.planning.joint import Prices, components, front_of
from cnncompress.planning.realize import costs_of, planned
from cnncompress.planning.selecting import selecting
from cnncompress.planning.solution import Joint, Solution
from cnncompress.planning.solver.fronts import Front, together, undominated
from tests.correction.networks import made, natural


class Path(nn.Module):
    """Three layers in a row, so that the middle one takes and gives channels, and a block with a depthwise layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1, bias=False)
        self.c = nn.Conv2d(12, 8, 1)
        self.up, self.dw, self.down = (
            nn.Conv2d(8, 16, 1),
            nn.Conv2d(16, 16, 3, padding=1, groups=16),
            nn.Conv2d(16, 8, 1),
        )
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.c(F.relu(self.b(F.relu(self.a(x)))))
        x = x + self.down(F.relu(self.dw(F.relu(self.up(x)))))
        return self.head(x.mean((2, 3)))


def candidates(method="auto+select", metric="data-covariance", answers=False):
    model, x = made(Path()), natural(30)
    statistics = cc.collect_statistics(model, [x], metric)
    subject = look_at(model, x)
    choices = {name: Choice(method) for name in subject.calls}
    found = make_candidates(subject, choices, Guide(metric, statistics), progress=False)
    return found, x


def few(found):
    """Every layer with at most three chains, every cut with four counts."""
    for layer in found.layers:
        for family in layer.families[:3]:
            family.chosen = [len(family.ranks) // 3]
        layer.families[3:] = []
    for cut in found.cuts:
        cut.chosen = sorted({cut.whole, cut.whole - 1, cut.whole // 2, cut.whole // 3})
    return found


def every_solution(found, options):
    """All there are, with errors and costs by arithmetic on the plans that they make."""
    subject, names = found.subject, [layer.name for layer in found.layers]
    for places in itertools.product(*(cut.chosen for cut in found.cuts)):
        settled = dict(zip(found.cuts, places, strict=True))
        for picked in itertools.product(*(options[name] for name in names)):
            solution = Solution(dict(zip(names, picked, strict=True)), settled, {})
            error = sum(c.error for c in picked) + sum(cut.error(place) for cut, place in settled.items())
            yield error, costs_of(subject, planned(subject, solution, "data-covariance", True)), solution


def test_the_front_of_a_component_is_that_of_all_solutions():
    found = few(candidates("spatial-svd+select")[0])
    parts = [part for part in components(found.layers, found.cuts) if part.cuts]
    assert sorted(sorted(x.layer.name for x in part.layers) for part in parts) == [
        ["a", "b", "c"],
        ["down", "dw", "up"],
    ]
    prices = Prices(["macs", "params"], None, True)
    for part in parts:
        layers = [x.layer for x in part.layers]
        options = {layer.name: layer.candidates()[:2] for layer in layers}
        own = replace(found, layers=tuple(layers), cuts=part.cuts)
        base = costs_of(found.subject, cc.Plan())
        outside = {cost: base[cost] - sum(layer.keep().costs[cost] for layer in layers) for cost in base}
        rows = [
            (error, costs["macs"] - outside["macs"], costs["params"] - outside["params"])
            for error, costs, _ in every_solution(own, options)
        ]
        error, cost = np.array([r[0] for r in rows]), np.array([r[1:] for r in rows])
        front = front_of(part, options, prices)
        best = undominated(error, cost)
        assert len(front.error) <= len(best)
        kept = np.array([np.isclose(front.error, e).any() for e in error[best]])
        assert kept.sum() >= min(len(best), 90)
        for e, c in zip(front.error, front.cost, strict=True):  # each way of the front is a solution with these costs
            assert (np.isclose(error, e) & np.isclose(cost, c).all(1)).any()


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5])
def test_the_joint_solution_is_the_best_of_all(share):
    found = few(candidates("channel-svd+select")[0])
    layers = tuple(layer for layer in found.layers if layer.name in {"a", "b", "c"})
    found = replace(found, layers=layers, cuts=tuple(cut for cut in found.cuts if cut.group.name in {"a", "b"}))
    options = {layer.name: layer.candidates()[:2] for layer in layers}
    total = sum(layer.keep().costs["macs"] for layer in layers)
    solution, _ = Joint(
        components(layers, found.cuts), options, Prices(["macs"], None, True), [share * total], 20
    ).solve()
    saved = costs_of(found.subject, cc.Plan())["macs"] - total
    fitting = [error for error, costs, _ in every_solution(found, options) if costs["macs"] - saved <= share * total]
    error = sum(c.error for c in solution.values()) + sum(cut.error(p) for cut, p in solution.places.items())
    assert error == pytest.approx(min(fitting), rel=1e-9)


@pytest.mark.few(1)
@pytest.mark.parametrize("budget", [Budget(macs=0.6), Budget(params=0.7), Budget(macs=0.8, params=0.6)])
def test_a_plan_keeps_its_budget_and_its_network_is_what_it_says(budget):
    found, x = candidates()
    plan = Planner(found).plan(budget)
    assert plan.narrowed
    small = cc.decompose(found.subject.network, plan, statistics=found.guide.statistics, progress=False)
    before, after = cc.profile(found.subject.network, x), cc.profile(small, x)
    shares = {"macs": after.total_macs / before.total_macs, "params": after.params / before.params}
    for cost, share in budget.shares.items():
        assert shares[cost] <= share + 1e-9
        assert plan.achieved[cost] == pytest.approx(shares[cost], rel=1e-9)


def test_more_choice_is_never_worse():
    found, _ = candidates()
    alone, _ = candidates("spatial-svd+spatial-svd:first=horizontal+channel-svd+cp+svd")
    assert not alone.cuts
    for share in (0.8, 0.6, 0.4):
        errors = [sum(Planner(c).plan(Budget(macs=share)).rises.values()) for c in (found, alone)]
        assert errors[0] <= errors[1] * 1.02  # fronts are thinned


def test_select_alone_narrows_alone():
    found, _ = candidates("select")
    plan = Planner(found).plan(Budget(macs=0.7))
    assert not plan.layers
    assert set(plan.kept) >= {"head"}
    assert "whole" in plan.kept["head"]
    with pytest.raises(UnreachableError, match="go down to"):
        Planner(found).plan(Budget(macs=0.01))


def test_a_circle_of_channels_is_opened():
    found, _ = candidates("select")
    one, two = found.cuts[0], found.cuts[1]
    shared = components(found.layers, found.cuts)
    assert {cut for part in shared for cut in part.cuts} == set(found.cuts)
    assert one in next(part for part in shared if two in part.cuts).cuts


class Circle(nn.Module):
    """A gate whose own two layers and the layer before share their channels in a circle; then a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 7, 3, padding=1)
        self.d, self.e, self.f, self.last = (nn.Conv2d(*two, 1) for two in ((7, 8), (8, 8), (8, 8), (16, 6)))

    def forward(self, x):
        x = F.relu(self.a(x))
        x = x * self.d(F.relu(self.c(F.relu(self.b(x))))).sigmoid()
        return self.last(F.relu(torch.cat([self.e(x), self.f(x)], 1))).mean((2, 3))


def test_channels_that_stay_whole_are_told_with_the_reason():
    """b takes the channels of a and d, c those of b, d those of c: the last of the three groups has to stay."""
    model, x = made(Circle()), natural(30)
    statistics = cc.collect_statistics(model, [x], "data-covariance", progress=False)
    subject = look_at(model, x)

    def kept(method, budget):
        choices = {name: Choice(method) for name in subject.calls}
        found = make_candidates(subject, choices, Guide("data-covariance", statistics), progress=False)
        return Planner(found).plan(budget).kept

    alone, both = kept("select", Budget(macs=1.0)), kept("auto+select", Budget(macs=1.0))
    assert alone["a"] == "its input channels stay whole: they are those of the image"
    assert both["a"].startswith(f"{STAYS}; its input channels stay whole")
    for plan in (alone, both):
        assert "they are concatenated with those of another branch" in plan["last"]
        circling = [name for name, why in plan.items() if "close a circle" in why]
        assert len(circling) == 1
        assert circling[0] in "bcd"


@pytest.mark.parametrize(
    ("method", "metric", "compact", "plain"),
    [
        ("auto", "kronecker", True, False),
        ("auto", "frobenius", False, False),
        ("auto+select", "frobenius", True, True),
        ("select", "kronecker", True, True),
        ("select", "mahalanobis", False, False),
        ("cp", "kronecker", False, False),
    ],
)
def test_auto_selects_channels_in_networks_of_depthwise_layers_where_there_are_images(method, metric, compact, plain):
    for network, expected in ((Path(), compact), (Circle(), plain)):
        subject = look_at(network, natural(1))
        choices = {name: Choice(method) for name in subject.calls}
        assert selecting(choices, subject, metric) == (set(choices) if expected else set())


def test_fronts_hold_what_no_other_way_beats():
    rng = np.random.default_rng(0)
    for limits in (1, 2, 3):
        error, cost = rng.integers(0, 12, 900).astype(float), rng.integers(0, 12, (900, limits)).astype(float)
        points = {(e, *c) for e, c in zip(error, cost, strict=True)}
        expected = {
            p for p in points if not any(q != p and all(x <= y for x, y in zip(q, p, strict=True)) for q in points)
        }
        index = undominated(error, cost)
        assert {(error[i], *cost[i]) for i in index} == expected
        assert len(index) == len(expected)


def test_fronts_are_added_way_by_way():
    one = Front(np.array([0.0, 2.0]), np.array([[5.0], [1.0]]), {"a": np.array([3, 7])})
    two = Front(np.array([1.0, np.inf]), np.array([[2.0], [0.0]]), {"b": np.array([0, 1])})
    total = one.plus(two).best()
    assert total.error.tolist() == [1.0, 3.0]
    assert total.cost.ravel().tolist() == [7.0, 3.0]
    assert [total.way(i) for i in range(2)] == [{"a": 3, "b": 0}, {"a": 7, "b": 0}]
    assert together([one, one]).best().error.tolist() == [0.0, 2.0]
    many = Front(np.arange(1000.0), np.arange(1000.0)[::-1, None], {"a": np.arange(1000)})
    thin = many.best(10)
    assert len(thin.error) == 10
    assert (thin.error[0], thin.cost[-1, 0]) == (0.0, 0.0)
