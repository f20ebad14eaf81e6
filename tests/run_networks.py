"""Networks to save, built by a factory in a file, for the tests of runs."""

import os

import torch

from cnncompress.chains.plan import LayerPlan, Plan
from cnncompress.chains.spec import ConvSpec, Permutation
from cnncompress.models import ModelSource
from cnncompress.network.preprocessing import Preprocessing
from cnncompress.network.provenance import Provenance, attach
from cnncompress.network.swap import apply_plan
from cnncompress.runs import rebuild

FACTORY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.again = self.body
        self.point = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 8)
        self.tied = nn.Linear(8, 8)
        self.tied.weight = self.head.weight

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = self.point(self.again(self.body(x).relu()))
        return self.tied(self.head(x.mean((2, 3))))

def build():
    return Net()

def tiny():
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten())
"""

EMPTY = {"schema": 1, "rows": [], "layers": []}
ROW = {"name": "net", "kind": "original", "params": 10, "macs": 20, "size_bytes": 40}
ROW |= dict.fromkeys(("top1", "top5", "images", "latency_ms"))


def plan():
    """`body` becomes a chain with a permutation, and the second stage of that chain a chain of its own."""
    body = (
        ConvSpec(8, 4, (3, 1), padding=(1, 0)),
        Permutation(4),
        ConvSpec(4, 8, (1, 3), padding=(0, 1)),
    )
    inner = (ConvSpec(4, 2, (1, 3), padding=(0, 1)), ConvSpec(2, 8))
    whole = ConvSpec(8, 8, (3, 3), padding=(1, 1))
    layers = {
        "body": LayerPlan(whole, "a-method", (4,), body, (100, 50), {"k": 1}),
        "body.2": LayerPlan(body[-1], "another", (2,), inner),
    }
    return Plan(layers, {"head": "Linear"}, "frobenius")


def network(factory, function="build", plan=None):
    source = ModelSource("factory", f"{factory}:{function}")
    plan = plan or Plan()
    net = rebuild.build_architecture(source)
    kernels = {
        name: [
            torch.randperm(stage.channels) if isinstance(stage, Permutation) else torch.randn(stage.weight_shape)
            for stage in p.chain
        ]
        for name, p in plan.layers.items()
    }
    apply_plan(net, plan, kernels)
    preprocessing = Preprocessing((8, 8), None, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    return attach(net.eval(), Provenance(source, preprocessing, plan, dict.fromkeys(plan.layers, 0.125)))


def randomise(net):
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor))
    return net


def env():
    return {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
