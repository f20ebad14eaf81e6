"""Random kernels: their variances, what else of a network they leave alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import cnncompress as cc
from cnncompress.chains.spec import ConvSpec
from cnncompress.decompositions import REGISTRY, get_method
from cnncompress.fitting import initialise
from cnncompress.network.provenance import Provenance
from tests.decompositions.helpers import generator


def test_the_last_stage_makes_up_for_a_rectification():
    """1/fan-in, 1/fan-in, 2/fan-in: 1×1 of 40, 3×3 of 30, 1×1 of 50 channels."""
    kernels = get_method("tucker2").scratch(ConvSpec(40, 60, (3, 3)), (30, 50), generator())
    expected = [1 / 40, 1 / 270, 2 / 50]
    assert [float(k.var()) for k in kernels] == pytest.approx(expected, rel=0.1)


def test_each_group_has_its_own():
    first, last = get_method("spatial-svd").scratch(ConvSpec(40, 40, (3, 3), groups=2), (10,), generator())
    assert (first.shape, last.shape) == ((20, 20, 3, 1), (40, 10, 1, 3))
    assert not torch.equal(first[:10], first[10:])
    assert float(first.var()) == pytest.approx(1 / 60, rel=0.15)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_method_has_them(name):
    spec = ConvSpec(8, 8, linear=True) if name == "svd" else ConvSpec(8, 8, (3, 3))
    method = get_method(name)
    rank = method.rank(spec, 0.5)
    kernels, again = (method.scratch(spec, rank, generator(3)) for _ in range(2))
    for stage, kernel, same in zip(method.stages(spec, rank), kernels, again, strict=True):
        assert torch.equal(kernel, same)
        module = stage.module(dtype=torch.float64)
        stage.write_kernel(module, kernel)
        assert stage.reorders == (not stage.read_kernel(module).is_floating_point())


def test_the_rest_of_a_network_stays():
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(16 * 16, 5))
    plan = cc.plan(network, torch.zeros(1, 3, 8, 8), method="spatial-svd", rank=8, layers=["2"])
    one, two, other = (initialise(network, Provenance(), plan, seed).network for seed in (0, 0, 1))
    assert torch.equal(one[0].weight, network[0].weight)
    assert torch.equal(one[4].weight, network[4].weight)
    assert all(torch.equal(a, b) for a, b in zip(one[2].kernels(), two[2].kernels(), strict=True))
    assert not torch.equal(one[2][0].weight, other[2][0].weight)
    assert not one[2][1].bias.any()
    assert one(torch.zeros(2, 3, 8, 8)).shape == (2, 5)
