"""Networks with fewer channels: what stays of them, and how well the layers that take fewer make up for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import cnncompress as cc
from cnncompress.errors import RunError, UnsupportedLayerError, UsageError
from cnncompress.network.copying import clone
from cnncompress.network.kinds import spec_of
from cnncompress.network.narrow import Chosen, narrow
from cnncompress.network.provenance import provenance
from cnncompress.network.selection import select
from tests.correction.networks import Concat, Residual, images, made, natural


class Mobile(nn.Module):
    """An inverted residual block, a PReLU and a flattening head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.up, self.bn = nn.Conv2d(8, 24, 1, bias=False), nn.BatchNorm2d(24)
        self.dw, self.act = nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.PReLU(24)
        self.down = nn.Conv2d(24, 8, 1, bias=False)
        self.last, self.head = nn.Conv2d(8, 12, 1), nn.Linear(12 * 16, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = x + self.down(self.act(self.dw(F.relu6(self.bn(self.up(x))))))
        return self.head(F.adaptive_avg_pool2d(F.relu(self.last(x)), 4).flatten(1))


NETWORKS = {"mobile": Mobile, "residual": Residual, "concat": Concat}


def planned(model, x, rank=0.5, metric="data-covariance", **request):
    statistics = {} if metric == "frobenius" else cc.collect_statistics(model, [x], metric, positions=None)
    return cc.plan(model, x, method="select", rank=rank, metric=metric, statistics=statistics, **request), statistics


def counted(statistics):
    """With every position as a sample, so that next to nothing draws the fit away from least squares."""
    return {name: replace(s, independent=None) for name, s in statistics.items()}


def outputs(model, x):
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_is_the_one_with_zeros_for_the_channels_that_went(name):
    model, x = made(NETWORKS[name]()), natural(8)
    plan, statistics = planned(model, x)
    found = select(model, plan, statistics)
    whole = clone(model)
    for layer, narrowed in plan.narrowed.items():
        chosen, module = found.chosen[layer], whole.get_submodule(layer)
        if narrowed.now.in_channels < narrowed.spec.in_channels and not narrowed.spec.depthwise:
            small = found.network.get_submodule(layer)
            with torch.no_grad():
                kernel = torch.zeros_like(module.weight)
                kernel[chosen.outputs[:, None], chosen.inputs] = small.weight
                module.weight.copy_(kernel)
                bias = torch.zeros(len(kernel))
                bias[chosen.outputs] = small.bias
                module.bias = nn.Parameter(bias)
    assert torch.allclose(outputs(found.network, x), outputs(whole, x), atol=1e-5)


def test_the_layers_are_as_wide_as_the_plan_says():
    model, x = made(Mobile()), natural(8)
    plan, statistics = planned(model, x)
    small = cc.decompose(model, plan, statistics=statistics, progress=False)
    for name, narrowed in plan.narrowed.items():
        assert spec_of(model.get_submodule(name)) == narrowed.spec
        assert spec_of(small.get_submodule(name)) == narrowed.now
    assert {name: n.rank for name, n in plan.narrowed.items()} == {
        "up": (8, 12),
        "dw": (12, 12),
        "down": (12, 8),
        "last": (8, 6),
        "head": (6 * 16, 5),
    }
    assert plan.channels == {"bn": 12, "act": 12}
    assert (small.bn.num_features, small.act.num_parameters, small.dw.groups) == (12, 12, 12)
    cost, params = cc.profile(small, x), sum(p.numel() for p in small.parameters())
    saved = sum(after - before for before, after in (n.macs for n in plan.narrowed.values()))
    assert cost.macs == cc.profile(model, x).macs + saved
    assert cost.params == params
    assert not any(p is q for p in model.parameters() for q in small.parameters())


@pytest.mark.parametrize("metric", ["data-covariance", "kronecker"])
def test_what_takes_fewer_channels_is_refitted_by_least_squares(metric):
    model, x = made(Residual()), natural(40)
    plan, statistics = planned(model, x, metric=metric)
    found = select(model, plan, counted(statistics))
    seen = {}
    model.conv2.register_forward_hook(lambda module, args, output: seen.update(x=args[0], y=output))
    outputs(model, x)
    rows = F.unfold(seen["x"], 3, padding=1).movedim(1, 2).flatten(0, 1).double().numpy()
    wanted = seen["y"].movedim(1, -1).flatten(0, 2).double().numpy()
    kept = (found.chosen["conv2"].inputs[:, None] * 9 + torch.arange(9)).flatten().numpy()
    basis = np.column_stack([rows[:, kept], np.ones(len(rows))])
    best = ((basis @ np.linalg.lstsq(basis, wanted, rcond=None)[0] - wanted) ** 2).sum()
    conv = found.network.conv2
    given = rows[:, kept] @ conv.weight.detach().flatten(1).double().numpy().T + conv.bias.detach().double().numpy()
    assert best <= ((given - wanted) ** 2).sum() <= 1.001 * best
    assert np.allclose(given.mean(0), wanted.mean(0), atol=1e-4)


def test_the_error_of_a_layer_is_the_one_that_its_outputs_have():
    model, x = made(Residual()), natural(40)
    plan, statistics = planned(model, x)
    found = select(model, plan, counted(statistics))
    seen = []
    for network in (model, found.network):
        network.conv2.register_forward_hook(lambda module, args, output: seen.append(output.double()))
    outputs(model, x)
    outputs(found.network, x)
    there, here = (y - y.mean((0, 2, 3), keepdim=True) for y in seen)
    assert found.errors["conv2"] == pytest.approx(float((there - here).norm() / there.norm()), rel=0.1)  # Σ is shrunk


def test_fewer_channels_are_chosen_among_more():
    model, x = made(Mobile()), natural(20)
    kept = {}
    for rank in (4, 8, 16):
        plan, statistics = planned(model, x, rank=rank, layers=["up", "dw", "down"])
        kept[rank] = set(select(model, plan, statistics).chosen["dw"].outputs.tolist())
    assert kept[4] < kept[8] < kept[16]


def test_without_images_the_smallest_kernels_go():
    model = made(Mobile())
    with torch.no_grad():
        model.down.weight[:, [3, 5, 20]] *= 1e-3
    plan, _ = planned(model, natural(2), rank=21, metric="frobenius", layers=["up", "dw", "down"])
    chosen = select(model, plan, {}).chosen["down"].inputs.tolist()
    assert chosen == [i for i in range(24) if i not in (3, 5, 20)]
    with pytest.raises(UsageError, match="mahalanobis"):
        cc.plan(model, natural(2), method="select", rank=0.5, metric="mahalanobis")


@pytest.mark.parametrize("correct", [False, True])
def test_a_saved_network_comes_back(correct, tmp_path):
    model, x = made(Mobile()), natural(12)
    plan, statistics = planned(model, x, images=x)
    if correct:
        small = cc.decompose_in_order(model, plan, x, statistics=statistics, progress=False)
    else:
        small = cc.decompose(model, plan, statistics=statistics, progress=False)
    cc.save(small, tmp_path / "run")
    for trust in (True, False):
        again = cc.load(tmp_path / "run", trust_code=trust)
        assert torch.allclose(outputs(again, x), outputs(small, x), atol=1e-5)
    again = cc.load(tmp_path / "run", trust_code=True)
    assert isinstance(again, Mobile)
    assert torch.equal(outputs(again, x), outputs(small, x))
    assert provenance(again).plan.narrowed == plan.narrowed
    assert provenance(again).plan.channels == plan.channels


def test_a_network_is_narrowed_again(tmp_path):
    model, x = made(Mobile()), natural(12)
    plan, statistics = planned(model, x, 0.75)
    small = cc.decompose(model, plan, statistics=statistics, progress=False)
    plan, statistics = planned(small, x, 12, layers=["up", "dw", "down"])
    again = cc.decompose(small, plan, statistics=statistics, progress=False)
    cc.save(again, tmp_path / "run")
    back = cc.load(tmp_path / "run", trust_code=True)
    assert torch.equal(outputs(back, x), outputs(again, x))
    found = provenance(back).plan.narrowed
    assert (found["down"].spec, found["down"].rank) == (spec_of(model.down), (12, 8))
    assert found["last"].rank == (8, 9)


def test_chains_stand_in_for_narrowed_layers(tmp_path):
    model, x = made(Residual()), natural(20)
    plan, statistics = planned(model, x, 0.75)
    small = cc.decompose(model, plan, statistics=statistics, progress=False)
    chains = cc.plan(small, x, method="spatial-svd", rank=0.3)
    assert {"conv2", "conv3"} <= chains.layers.keys()
    both = cc.decompose(small, chains, progress=False)
    cc.save(both, tmp_path / "run")
    assert torch.equal(outputs(cc.load(tmp_path / "run", trust_code=True), x), outputs(both, x))


def test_a_correction_brings_the_outputs_nearer():
    model, x = made(Residual()), natural(60)
    plan, statistics = planned(model, x, 0.5, images=x)
    assert plan.narrowed["conv2"].now.bias
    plainly = cc.decompose(model, plan, statistics=statistics, progress=False)
    in_order = cc.decompose_in_order(model, plan, x, statistics=statistics, progress=False)
    wanted = outputs(model, x)
    before, after = (float((outputs(net, x) - wanted).square().sum()) for net in (plainly, in_order))
    assert after < before
    assert spec_of(in_order.conv2) == plan.narrowed["conv2"].now


def test_a_plan_that_does_not_fit_is_refused():
    model, x = made(Mobile()), natural(8)
    plan, _ = planned(model, x)
    with pytest.raises(UnsupportedLayerError, match="is 1×1 8→24"):
        narrow(made(Mobile()), cc.Plan(narrowed={"up": plan.narrowed["down"]}))
    with pytest.raises(UnsupportedLayerError, match="no module nowhere"):
        narrow(made(Mobile()), cc.Plan(narrowed={"nowhere": plan.narrowed["down"]}))
    with pytest.raises(UnsupportedLayerError, match="24 channels, and for 25"):
        narrow(made(Mobile()), cc.Plan(channels={"bn": 25}))
    with pytest.raises(UnsupportedLayerError, match="0 channels, and for 2"):
        narrow(made(Mobile()), cc.Plan(channels={"stem": 2}))
    narrowed = {name: n for name, n in plan.narrowed.items() if name != "dw"}
    with pytest.raises(UnsupportedLayerError, match="do not fit"):
        select(model, cc.Plan(narrowed=narrowed, channels=plan.channels), {})


def test_a_damaged_plan_is_met_with_one_line(tmp_path):
    model, x = made(Mobile()), natural(8)
    plan, statistics = planned(model, x)
    small = cc.decompose(model, plan, statistics=statistics, progress=False)
    cc.save(small, tmp_path / "run")
    file = tmp_path / "run" / "plan.json"
    text = file.read_text()
    for old, new in (('"bn": 12', '"bn": 30'), ('"bn": 12', '"bm": 12'), ('"bn": 12', '"bn": 0')):
        assert old in text
        file.write_text(text.replace(old, new))
        with pytest.raises(RunError):
            cc.load(tmp_path / "run", trust_code=True)


def test_what_is_first_is_chosen_where_nothing_says_which():
    chosen = Chosen.first(3, 2)
    assert (chosen.inputs.tolist(), chosen.outputs.tolist()) == ([0, 1, 2], [0, 1])


def test_layers_that_stay_are_told_why():
    model = made(Residual())
    plan = cc.plan(model, images(2), method="select", rank=0.5)
    assert set(plan.narrowed) == {"conv1", "conv2", "conv3", "conv4"}
    assert all(reason.startswith("its input channels stay whole: ") for reason in plan.kept.values())
    assert set(plan.kept) == {"stem", "short.0", "head"}
    held = cc.plan(model, images(2), method="select", rank=0.5, skip=["conv2"])
    assert held.kept["conv1"] == "conv2 has the same channels and stays as it is"
    assert set(held.narrowed) == {"conv3", "conv4"}
    full = cc.plan(model, images(2), method="select", rank=99)
    assert not full.changes
    assert full.kept["conv4"] == "rank 16 is all of its 16 channels"
