"""How the work of planning and decomposing grows with the number of layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import cnncompress as cc
from cnncompress.network import layers
from cnncompress.network.standing_in import examine
from cnncompress.network.swap import apply_plan


def chain_of(depth):
    return nn.Sequential(*(layer for _ in range(depth) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())))


@pytest.fixture
def looked_at(monkeypatch):
    """Counts the modules that walks over a network pass, and the weights that are compared."""
    counted = [0]
    named_modules, weight_of = nn.Module.named_modules, layers.weight_of

    def walk(*args, **kwargs):
        for item in named_modules(*args, **kwargs):
            counted[0] += 1
            yield item

    def look(module):
        counted[0] += 1
        return weight_of(module)

    monkeypatch.setattr(nn.Module, "named_modules", walk)
    monkeypatch.setattr(layers, "weight_of", look)

    def count(work):
        counted[0] = 0
        work()
        return counted[0]

    return count


def test_no_layer_has_the_network_looked_through_again(looked_at):
    """Work in proportion to the layers: as many more layers take as much more, however many there are."""

    def taken(depth):
        network, image = chain_of(depth), torch.zeros(1, 8, 4, 4)
        plan = cc.plan(network, image, rank=0.25)
        assert len(plan.layers) == depth
        return [
            looked_at(lambda: cc.plan(network, image, rank=0.25)),
            looked_at(lambda: cc.decompose(network, plan, progress=False)),
            looked_at(lambda: apply_plan(chain_of(depth), plan)),
            looked_at(lambda: examine(network, image)),
            looked_at(lambda: cc.decompose_in_order(network, plan, image, progress=False)),
        ]

    few, more, most = taken(8), taken(16), taken(24)
    assert [c - b for b, c in zip(more, most, strict=True)] == [b - a for a, b in zip(few, more, strict=True)]
