"""What follows a layer: rectifications, and convolutions that stay."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import mobilenet_v2, resnet18, squeezenet1_0

from cnncompress.chains.modules import FactoredLayer
from cnncompress.correction.after import After, after_of
from cnncompress.correction.following import following
from cnncompress.network.copying import clone
from cnncompress.network.graph import trace_graph
from cnncompress.network.provenance import provenance
from cnncompress.planning import Choice
from tests.correction.fits import in_order, planned, side_by_side
from tests.correction.networks import Then, made, natural
from tests.decompositions.helpers import randn, relative
from tests.orders import never_rises


def rectified(model: nn.Module) -> set[str]:
    modules = dict(model.named_modules())
    return {str(n.target) for n in trace_graph(model).graph.nodes if following(n, modules).rectified}


def test_what_is_rectified_in_known_networks():
    resnet = rectified(resnet18(weights=None))
    assert resnet == {"conv1"} | {f"layer{i}.{j}.conv{k}" for i in range(1, 5) for j in range(2) for k in (1, 2)} | {
        f"layer{i}.0.downsample.0" for i in range(2, 5)
    }
    assert rectified(mobilenet_v2(weights=None)) == set()  # ReLU6
    assert len(rectified(squeezenet1_0(weights=None))) == 26  # every convolution


@pytest.mark.parametrize(
    "relu",
    [F.relu, torch.relu, lambda y: F.relu(y, inplace=True), torch.relu_, lambda y: y.relu(), lambda y: y.relu_()],
)
def test_ways_to_rectify(relu):
    assert rectified(nn.Sequential(Then(lambda y, x: relu(y).mean((2, 3))), nn.Linear(3, 2))) == {"0.a"}


@pytest.mark.parametrize("form", [lambda y: y.relu() + y, lambda y: F.leaky_relu(y, 0.1), lambda y: y.sigmoid()])
def test_what_is_no_rectification(form):
    assert rectified(Then(lambda y, x: form(y))) == set()


def test_aims_lead_to_the_least_error_that_counts():
    """The error falls from aim to aim, and ends at what Newton's method finds for the convex problem."""
    x, sign = randn(300, 4, seed=1), torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
    wanted, level = x @ randn(4, 3, seed=2) + randn(300, 3, seed=3), randn(300, 3, seed=4)
    seen = sign * wanted > sign * level

    def error(weight):
        given = x @ weight
        return (torch.where(seen, wanted - given, (sign * (given - level)).relu())).square().sum()

    after, aim, errors = After(level=level, sign=sign), wanted, []
    for _ in range(60):
        weight = torch.linalg.lstsq(x, aim).solution
        errors.append(float(error(weight)))
        aim = after.aim(wanted, x @ weight, level)
    assert never_rises(errors)
    assert errors[-1] < errors[1] < errors[0]
    best = torch.zeros(4, 3, dtype=torch.float64)
    for _ in range(30):
        gradient = torch.func.grad(error)(best).flatten()
        hessian = torch.func.hessian(error)(best).reshape(12, 12)
        best = best - torch.linalg.solve(hessian, gradient).reshape(4, 3)
    assert errors[-1] == pytest.approx(float(error(best)), rel=1e-6)


class Branches(nn.Module):
    """A rectified sum of a normalised branch and another one, which stays."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1, bias=False)
        self.norm, self.short = nn.BatchNorm2d(8), nn.Conv2d(3, 8, 1)
        self.last, self.head = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.Conv2d(6, 5, 1)

    def summed(self, x):
        return self.norm(self.second(self.first(x).relu())) + self.short(x)

    def forward(self, x):
        return self.head(self.last(self.summed(x).relu())).mean((2, 3))


def branches() -> nn.Module:
    model = made(Branches())
    with torch.no_grad():
        model.norm.weight[::2] *= -1
    return model


def test_the_level_is_where_the_rectification_begins():
    model, x = branches(), natural(4)
    other = clone(model)
    with torch.no_grad():
        other.short.weight.mul_(0.5)

    seen = {visit.layer: after_of(visit) for visit in side_by_side(model, other, x)}
    after = seen["second"]
    with torch.no_grad():
        at_level = model.norm(after.level) + other.short(x)
        above = model.norm(after.level + after.sign[:, None, None]) + other.short(x)
    usual = model.norm.weight.abs() / model.norm.running_var.sqrt() > 0.1
    assert usual.sum() >= 6
    # undone with a floor, so nearly at zero on the scale of the sum
    assert float(at_level[:, usual].detach().abs().mean()) < 0.03 * float(model.summed(x).detach().abs().mean())
    assert (above[:, usual] > at_level[:, usual]).all()
    assert torch.equal(seen["first"].level.flatten(), torch.zeros(16))
    assert seen["last"].level is None


def test_what_is_seen_of_an_output_gains():
    model, x = branches(), natural(60)
    rules = {"second": Choice("channel-svd", 3)}
    found, statistics = planned(model, x, per_layer=rules, layers=["second"])
    small = [in_order(model, found, x, statistics, rounds=rounds) for rounds in (1, 4)]
    for images in (x, natural(60, seed=5)):
        with torch.no_grad():
            once, often = (relative(s.summed(images).relu(), model.summed(images).relu()) for s in small)
        assert often < 0.97 * once


def test_convolutions_that_stay_are_fitted_too():
    model, x = branches(), natural(60)
    found, statistics = planned(model, x, per_layer={"first": Choice("channel-svd", 3)}, layers=["first"])
    plainly = in_order(model, found, x, statistics)
    small = in_order(model, found, x, statistics, adjust=["second", "short", "last", "head"])
    assert torch.equal(plainly.second.weight, model.second.weight)
    assert not torch.equal(small.second.weight, model.second.weight)
    assert small.second.bias is None
    assert {n for n, why in provenance(small).plan.kept.items() if "is refitted" in why} == {"second", "short", "last"}
    assert not any("is refitted" in why for why in found.kept.values())
    others = natural(60, seed=5)
    with torch.no_grad():
        assert relative(small.summed(others), model.summed(others)) < 0.9 * relative(
            plainly.summed(others), model.summed(others)
        )


def test_what_is_not_to_be_adjusted_stays():
    """Layers before all chains, the last one, shared weights, and those that nobody named."""
    model, x = branches(), natural(20)
    model.other = nn.Conv2d(8, 6, 3)
    model.other.weight = model.last.weight
    found, statistics = planned(model, x, per_layer={"second": Choice("channel-svd", 3)}, layers=["second"])
    small = in_order(model, found, x, statistics, adjust=["first", "last", "second", "head"])
    assert isinstance(small.second, FactoredLayer)
    assert torch.equal(small.first.weight, model.first.weight)
    assert torch.equal(small.last.weight, model.last.weight)
    assert torch.equal(small.short.weight, model.short.weight)
    assert torch.equal(small.head.weight, model.head.weight)
    unfitted = in_order(model, found, x, statistics, refit=False, adjust=["last", "short"])
    assert torch.equal(unfitted.short.weight, model.short.weight)
