"""Networks whose class has a `train` of its own, as those that keep batch normalisation frozen."""

import torch
from torch import nn

import cnncompress as cc
from cnncompress.models import load_model
from cnncompress.network.graph import trace_graph
from cnncompress.network.modes import evaluating


class Frozen(nn.Sequential):
    """Returns nothing from `train`, and so from `eval`."""

    def __init__(self):
        convolution, normalisation = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        super().__init__(convolution, normalisation, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))

    def train(self, mode=True):
        super().train(mode)
        self[1].training = False


def test_a_network_is_set_to_evaluation_by_its_own_way():
    network = Frozen()
    assert network.eval() is None
    network.train()
    assert network.training
    assert not network[1].training
    assert evaluating(network) is network
    assert not any(module.training for module in network.modules())


def test_it_is_loaded_traced_decomposed_timed_and_saved(tmp_path):
    loaded = load_model(f"{__name__}:Frozen", input_size=8)
    x = torch.rand(2, 3, 8, 8)
    assert trace_graph(loaded.model, x) is not None
    small = cc.decompose(loaded.model, cc.plan(loaded.model, x, rank=2))
    assert set(small.cnncompress.plan.layers) == {"0", "5"}
    assert cc.profile(small, x).total_macs < cc.profile(loaded.model, x).total_macs
    cc.save(small, tmp_path / "run")
    assert torch.equal(cc.load(tmp_path / "run", trust_code=True)(x), small(x))
