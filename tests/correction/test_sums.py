"""Where an output is added to another branch, it makes up for that branch's error."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cnncompress.correction import refit
from cnncompress.correction.after import After, after_of
from cnncompress.network.copying import clone
from cnncompress.network.provenance import provenance
from cnncompress.planning import Choice
from tests.correction.fits import in_order, planned, side_by_side
from tests.correction.networks import made, natural
from tests.decompositions.helpers import relative


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
    monkeypatch.setattr(refit, "after_of", lambda *args: After())
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
    seen = {visit.layer: after_of(visit).missing for visit in side_by_side(model, other, x)}
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
    other = clone(model)
    with torch.no_grad():
        other.short.weight.mul_(0.5)

    seen = {visit.layer: after_of(visit).missing for visit in side_by_side(model, other, x)}
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
