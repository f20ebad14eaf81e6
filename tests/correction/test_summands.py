"""What is added to the output of a layer is known to a walk."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.resnet import BasicBlock, Bottleneck

from cnncompress.correction.following import following
from cnncompress.correction.walk import network_order
from cnncompress.network.graph import trace_graph
from tests.correction.fits import side_by_side
from tests.correction.networks import Concat, Residual, Then, images, made


def summands(model: nn.Module) -> dict[str, tuple[str, str | None]]:
    """For every convolution that goes into a sum: the target of what is added, and of its own normalisation."""
    modules, found = dict(model.named_modules()), {}
    names = {id(module): name for name, module in modules.items()}
    for node in trace_graph(model).graph.nodes:
        after = following(node, modules)
        if after.partner is not None:
            found[str(node.target)] = (str(after.partner.target), names.get(id(after.norm)))
    return found


def test_summands_of_a_basic_block():
    short = nn.Sequential(nn.Conv2d(4, 8, 1, stride=2, bias=False), nn.BatchNorm2d(8))
    assert summands(nn.Sequential(nn.Conv2d(3, 4, 1), BasicBlock(4, 4))) == {"1.conv2": ("0", "1.bn2")}
    assert summands(BasicBlock(4, 8, 2, short)) == {
        "conv2": ("downsample.1", "bn2"),
        "downsample.0": ("bn2", "downsample.1"),
    }


def test_summands_of_a_bottleneck():
    short = nn.Sequential(nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8))
    assert summands(nn.Sequential(nn.Conv2d(3, 8, 1), Bottleneck(8, 2))) == {"1.conv3": ("0", "1.bn3")}
    assert summands(Bottleneck(4, 2, 1, short)) == {
        "conv3": ("downsample.1", "bn3"),
        "downsample.0": ("bn3", "downsample.1"),
    }


def test_every_block_of_a_resnet_has_its_summand():
    found = summands(resnet18(weights=None))
    assert {name for name in found if "conv2" in name} == {f"layer{i}.{j}.conv2" for i in range(1, 5) for j in range(2)}
    assert all(found[f"layer{i}.0.conv2"][0] == f"layer{i}.0.downsample.1" for i in range(2, 5))
    assert not any("conv1" in name for name in found)


class Sums(nn.Module):
    """Sums that cannot be made up for, one by one."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.relu, self.norm = nn.ReLU(), nn.GroupNorm(1, 3)

    def forward(self, x):
        y = self.a(x)
        return {
            "used elsewhere": lambda: y + self.b(x) * y.mean(),
            "itself": lambda: y + y,
            "depends": lambda: y + self.b(self.relu(y)),
            "a number": lambda: y + 1.0,
            "scaled": lambda: torch.add(y, x, alpha=2),
            "activated": lambda: self.relu(y) + x,
            "another norm": lambda: self.norm(y) + x,
            "product": lambda: y * x,
            "concat": lambda: torch.cat([y, x], 1),
            "difference": lambda: y - x,
        }[self.kind]()


@pytest.mark.parametrize(
    "kind",
    [
        "used elsewhere",
        "itself",
        "depends",
        "a number",
        "scaled",
        "activated",
        "another norm",
        "product",
        "concat",
        "difference",
    ],
)
def test_no_summand(kind):
    assert "a" not in summands(Sums(kind))


def test_no_summands_in_a_concatenation():
    assert summands(Concat()) == {}


@pytest.mark.parametrize(
    "add",
    [lambda y, x: y + x, lambda y, x: x + y, torch.add, lambda y, x: y.add(x), lambda y, x: y.add_(x)],
    ids=["y + x", "x + y", "torch.add", "add", "add_"],
)
def test_ways_to_add(add):
    assert summands(Then(add)) == {"a": ("x", None)}


def test_both_summands_are_computed_before_the_convolution():
    model, x = made(Residual()), images(2)
    added = [v.layer for v in side_by_side(model, model, x) if v.following.partner is not None and v.summands is None]
    assert added == ["short.0"]
    order = [str(node.target) for node in network_order(trace_graph(model).graph, dict(model.named_modules()))]
    assert order.index("short.1") < order.index("conv4")
    assert order.index("conv1") < order.index("conv2") < order.index("conv3")
