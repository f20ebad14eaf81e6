"""Chains with batch normalisation: where the network normalises, there is no other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import cnncompress as cc
from cnncompress.chains.spec import ConvSpec
from cnncompress.chains.stages import Normalised
from cnncompress.decompositions import get_method
from cnncompress.errors import UsageError
from cnncompress.finetuning import FinetuneSettings
from cnncompress.fitting import initialise
from cnncompress.network.graph import trace_graph
from cnncompress.network.normalised import normalised_layers
from cnncompress.network.provenance import Provenance
from tests.finetuning.toy import tune


class Network(nn.Module):
    """One layer is normalised, one is not, one only on one of two ways, and one in one of two calls."""

    def __init__(self):
        super().__init__()
        self.one, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.two, self.three = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.two(self.norm(self.one(x)).relu()).relu()
        x = self.three(x)
        x = x + self.norm(x)
        x = self.twice(self.norm(self.twice(x)))
        return self.head(x.mean((2, 3)))


def planned(network, method, **request):
    return cc.plan(network, torch.zeros(1, 3, 8, 8), method=method, layers=["[!h]*"], force=True, **request)


def test_only_layers_that_are_not_normalised_get_one():
    network = Network().eval()
    assert normalised_layers(trace_graph(network), network) == {"one"}
    plan = planned(network, "spatial-svd:norm=batch", rank=4)
    kinds = {name: [stage.kind for stage in p.chain] for name, p in plan.layers.items()}
    plain, normalised = ["conv2d", "conv2d"], ["conv2d", "normalised"]
    assert kinds == {"one": plain, "two": normalised, "three": normalised, "twice": normalised}
    assert plan.layers["one"].options == {"first": "vertical", "norm": "none"}
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(
        cc.decompose(network, plan)(x), cc.decompose(network, planned(network, "spatial-svd", rank=4))(x)
    )


def test_a_budget_knows_it_too():
    plan = planned(Network().eval(), "spatial-svd:first=horizontal,norm=batch", budget=cc.Budget(macs=0.12))
    assert {"one", "two"} <= set(plan.layers)
    assert all((name != "one") == isinstance(p.chain[1], Normalised) for name, p in plan.layers.items())


@pytest.mark.parametrize("first", ["vertical", "horizontal"])
def test_the_chain_is_the_same_but_for_that(first):
    spec = ConvSpec(4, 6, (3, 5), (2, 1), (1, 2), groups=2)
    chain = get_method("spatial-svd", first=first, norm="batch").stages(spec, (3,))
    plain = get_method("spatial-svd", first=first).stages(spec, (3,))
    assert (chain[0], chain[1].whole) == (plain[0], plain[1].replace(bias=True))


def test_an_option_that_makes_no_sense():
    with pytest.raises(UsageError, match="option norm of method spatial-svd is one of none, batch, not 'layer'"):
        get_method("spatial-svd", norm="layer")
    with pytest.raises(UsageError, match="option first of method spatial-svd is one of vertical, horizontal"):
        get_method("spatial-svd", first="diagonal")


def test_training_from_scratch_uses_and_moves_its_statistics(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3)
    )
    plan = cc.plan(network, torch.zeros(1, 3, 8, 8), method="spatial-svd:norm=batch", rank=4, layers=["0"], force=True)
    small = initialise(network, Provenance(), plan).network
    assert torch.equal(small[0][1].variance, torch.ones(8))
    assert tune(tmp_path, small, epochs=2, freeze_bn=False).best_epoch > 0
    assert not torch.equal(small[0][1].variance, torch.ones(8))
    assert small[0][1].norm is None
    assert FinetuneSettings().freeze_bn is None
