"""Running statistics taken again, against direct computation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cnncompress.correction import reestimate
from cnncompress.network.copying import clone
from cnncompress.network.divergence import Answers
from tests.correction.networks import Residual, images, made, natural
from tests.decompositions.helpers import randn


def net() -> nn.Sequential:
    return made(
        nn.Sequential(
            nn.Conv2d(3, 5, 3),
            nn.BatchNorm2d(5),
            nn.ReLU(),
            nn.Conv2d(5, 4, 3),
            nn.BatchNorm2d(4, affine=False),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 6),
            nn.BatchNorm1d(6, momentum=None),
        )
    )


def test_each_one_sees_what_those_before_it_make():
    model, x = net(), natural(9)
    found = reestimate(model, x)
    y = x
    with torch.no_grad():
        for i, module in enumerate(model):
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                rows = y.double().movedim(1, -1).reshape(-1, y.shape[1])
                mean, var = rows.mean(0), rows.sub(rows.mean(0)).square().sum(0) / (len(rows) - 1)
                torch.testing.assert_close(found[i].running_mean, mean.float(), rtol=1e-4, atol=1e-6)
                torch.testing.assert_close(found[i].running_var, var.float(), rtol=1e-4, atol=1e-6)
                shape = [1, -1] + [1] * (y.dim() - 2)
                y = (y - mean.float().view(shape)) / (var.float().view(shape) + module.eps).sqrt()
                if module.affine:
                    y = y * module.weight.view(shape) + module.bias.view(shape)
            else:
                y = module(y)
        torch.testing.assert_close(found(x), y, rtol=1e-3, atol=1e-4)


def test_it_is_what_one_training_step_of_full_momentum_gives():
    model, x = made(Residual()), natural(6)
    found, other = reestimate(model, x), clone(model)
    for module in other.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    other.bn1.train()  # the first one only, as in training each one would divide by the variance of its own batch
    with torch.no_grad():
        other(x)
    torch.testing.assert_close(found.bn1.running_mean, other.bn1.running_mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.bn1.running_var, other.bn1.running_var, rtol=1e-4, atol=1e-5)


def test_the_network_itself_is_left_alone():
    model, x = made(Residual()), images()
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = reestimate(model, x)
    assert found.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in (*model.modules(), *found.modules()))
    changed = {k for k, v in found.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {k for k in before if k.endswith(("running_mean", "running_var"))}


def test_it_undoes_a_change_of_scale():
    """A convolution twice as large gives the same answers once its normalisation has seen it."""
    model, x = net(), natural(20)
    model = reestimate(model, x)
    scaled = clone(model)
    with torch.no_grad():
        scaled[0].weight.mul_(2)
        scaled[0].bias.mul_(2)
    answers = Answers(model, x)
    assert answers.divergence(reestimate(scaled, x)) < 1e-6 < answers.divergence(scaled)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.Flatten()),
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten()),
    ],
    ids=["none", "without statistics"],
)
def test_networks_with_nothing_to_estimate(model):
    assert reestimate(model.eval(), images()) is None


def test_a_single_value_is_no_variance():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.Flatten()).eval()
    found = reestimate(model, images(1))
    assert torch.equal(found[1].running_var, torch.ones(3))
    assert torch.isfinite(found(randn(2, 3, 4, 4, dtype=torch.float32))).all()
