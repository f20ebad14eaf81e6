"""Predictions of a budget's plan, corrected by what the layers do to the answers."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from cnncompress.chains.modules import FactoredLayer
from cnncompress.chains.plan import Budget
from cnncompress.fitting import decompose
from cnncompress.network.divergence import Answers
from cnncompress.network.subject import look_at
from cnncompress.planning import Choice, Guide, Planner, choices_of, make_candidates, plan
from cnncompress.statistics import collect_statistics
from tests.decompositions.helpers import randn, randomize
from tests.planning.networks import images


class Pointwise(nn.Module):
    """Three layers of which only the best rank matters."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(24, 24, 1, bias=False) for _ in range(3))

    def forward(self, x):
        return self.c(self.b(self.a(x))).mean((2, 3))


class Answering:
    """Answers that move by a known multiple of the squared relative error of each layer."""

    def __init__(self, model: nn.Module, slopes: dict[str, float]) -> None:
        self.model, self.slopes, self.asked = model, slopes, 0

    def divergence(self, small: nn.Module) -> float:
        self.asked += 1
        changed = [n for n, m in small.named_modules() if isinstance(m, FactoredLayer)]
        assert len(changed) == 1
        (name,) = changed
        weight, dense = self.model.get_submodule(name).weight.detach(), small.get_submodule(name).to_dense()
        return self.slopes[name] * float((weight - dense).square().sum() / weight.square().sum())


def planned(model, answers, budget, example):
    subject = look_at(model, example)
    choices, _ = choices_of(subject, Choice(), {})
    return Planner(make_candidates(subject, choices, Guide(answers=answers), progress=False)).plan(budget)


def brute_force(model: nn.Module, slopes: dict[str, float], share: float) -> dict[str, tuple[int, ...] | None]:
    """The ranks of the smallest weighted error, by looking at all; weights 24×24 cost 48 a rank."""
    options = {}
    for name, slope in slopes.items():
        weight = model.get_submodule(name).weight.detach().double().flatten(1)
        energy = torch.linalg.svdvals(weight).square()
        options[name] = [(576, 0.0, None)] + [
            (48 * k, slope * float(energy[k:].sum() / energy.sum()), (k,)) for k in range(1, 12)
        ]
    fitting = [c for c in itertools.product(*options.values()) if sum(o[0] for o in c) <= share * 3 * 576]
    best = min(fitting, key=lambda c: sum(o[1] for o in c))
    return {name: o[2] for name, o in zip(options, best, strict=True)}


@pytest.mark.parametrize("slopes", [(1.0, 1.0, 1.0), (0.3, 2.0, 40.0), (5.0, 0.001, 7.0)], ids=str)
@pytest.mark.parametrize("share", [0.15, 0.3, 0.5])
def test_predictions_are_corrected_by_what_the_layers_do(slopes, share):
    """The answers tell the layers apart, Frobenius does not: the plan is the best one for what they tell."""
    model = randomize(Pointwise())
    told = dict(zip("abc", slopes, strict=True))
    answers = Answering(model, told)
    found = planned(model, answers, Budget(macs=share), images(channels=24))
    chosen = {n: found.layers[n].rank if n in found.layers else None for n in "abc"}
    assert answers.asked <= 6
    assert not planned(model, None, Budget(macs=share), images(channels=24)).kept  # so that all were measured
    assert chosen == brute_force(model, told, share)
    for name, rise in found.rises.items():
        energy = torch.linalg.svdvals(model.get_submodule(name).weight.detach().double().flatten(1)).square()
        share_lost = float(energy[found.layers[name].rank[0] :].sum() / energy.sum())
        assert rise == pytest.approx(told[name] * share_lost, rel=1e-3)


def test_layers_that_lose_nothing_tell_nothing():
    """A layer of rank 3 whose answers do not move leaves the predictions of the others alone."""
    model = randomize(Pointwise())
    with torch.no_grad():
        model.b.weight.copy_((randn(24, 3, seed=8) @ randn(3, 24, seed=9))[..., None, None])
    answers = Answering(model, {"a": 2.0, "b": 0.0, "c": 2.0})
    found = planned(model, answers, Budget(macs=0.4), images(channels=24))
    assert found.layers["b"].rank == (3,)
    for name in "ac":
        weight = model.get_submodule(name).weight.detach().double().flatten(1)
        energy = torch.linalg.svdvals(weight).square()
        lost = float(energy[found.layers[name].rank[0] :].sum() / energy.sum())
        assert found.rises[name] == pytest.approx(2 * lost, rel=1e-3)


class Branches(nn.Module):
    """Before an average over positions: one branch sees flat images, so that its errors add up; two see noise."""

    def __init__(self) -> None:
        super().__init__()
        self.flat, self.noise, self.more = (nn.Conv2d(20, 20, 1) for _ in range(3))
        self.head = nn.Linear(60, 10)

    def forward(self, x):
        a, b, c = x.chunk(3, 1)
        return self.head(torch.cat([self.flat(a), self.noise(b), self.more(c)], 1).mean((2, 3)))


def branch_images(n: int, seed: int) -> torch.Tensor:
    flat = images(n, seed, 20, 1).expand(-1, -1, 8, 8)
    return torch.cat([flat, images(n, seed + 1, 40, 8)], 1)


def test_a_layer_whose_prediction_is_far_too_low():
    """Positions count as independent in the metric; here 64 of them agree, and the error is 64 times as large."""
    model, x = randomize(Branches(), 3), branch_images(200, 0)
    with torch.no_grad():
        model.head.weight.mul_(0.3)
    statistics = collect_statistics(model, [x], "kronecker", progress=False)
    request = {"metric": "kronecker", "statistics": statistics, "budget": Budget(macs=0.6), "skip": ["head"]}
    trusting, checked = plan(model, x, **request), plan(model, x, **request, images=x)
    ranks = [p.layers["flat"].rank[0] if "flat" in p.layers else 20 for p in (trusting, checked)]
    assert ranks[1] > ranks[0]
    answers = Answers(model, branch_images(200, 9))
    moved = [
        answers.divergence(decompose(model, p, statistics=statistics, progress=False)) for p in (trusting, checked)
    ]
    assert moved[1] < 0.5 * moved[0]
    assert checked.achieved["macs"] <= 0.6
