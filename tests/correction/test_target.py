"""What a layer should do, seen from the compressed network, against brute-force least squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cnncompress.chains.spec import ConvSpec
from cnncompress.correction.target import Positions, Samples
from cnncompress.maths.linalg import oas_shrinkage
from cnncompress.network.kinds import KINDS, kind_of, spec_of
from tests.decompositions.helpers import randn, relative


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("rows", [4, 30, 500])
def test_the_target_is_a_least_squares_solution(groups, rows):
    """Stacked under the samples: one made-up sample an input, of which the original network makes what it does."""
    spec = ConvSpec(2 * groups, 4 * groups, (2, 3), groups=groups)
    weight, n = randn(*spec.weight_shape), 12
    x = randn(rows, groups, n, seed=1) * torch.exp(randn(groups, n, seed=2)) + randn(groups, n, seed=3)
    y = randn(rows, 4 * groups, seed=4) + 2
    samples = Samples.of(x, 7)
    found, statistics = samples.target(weight, spec, y), samples.statistics
    for g in range(groups):
        X, Y = x[:, g].numpy(), y[:, 4 * g : 4 * g + 4].numpy()
        X, Y = X - X.mean(0), Y - Y.mean(0)
        moment = X.T @ X / rows
        share = oas_shrinkage(torch.from_numpy(moment), rows)
        level = np.trace(moment) / n
        W = weight[4 * g : 4 * g + 4].flatten(1).numpy()
        stacked = np.vstack([np.sqrt((1 - share) / rows) * X, np.sqrt(share * level) * np.eye(n)])
        wanted = np.vstack([np.sqrt((1 - share) / rows) * Y, np.sqrt(share * level) * W.T])
        expected = np.linalg.lstsq(stacked, wanted, rcond=None)[0].T
        assert relative(found[4 * g : 4 * g + 4].flatten(1), torch.from_numpy(expected)) < 1e-8
        torch.testing.assert_close(statistics.moment[g], torch.from_numpy(moment).float(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(statistics.mean[g], x[:, g].mean(0).float())
    assert found.shape == weight.shape
    assert (statistics.images, statistics.rows) == (7, rows)


def test_positions_that_are_alike_draw_the_target_nearer_to_the_weight():
    spec = ConvSpec(8, 3)
    weight, x = randn(3, 8, 1, 1), randn(40, 1, 8, seed=1)
    y = randn(40, 3, seed=2)
    copies = [t.repeat_interleave(9, 0) for t in (x, y)]
    once, apart = Samples.of(x, 40), Samples.of(copies[0], 360)
    alike = Samples.of(copies[0], 40)
    assert apart.independent > alike.independent == once.independent
    found = [s.target(weight, spec, out) for s, out in ((once, y), (alike, copies[1]), (apart, copies[1]))]
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-9)
    assert (found[1] - weight).norm() < (found[2] - weight).norm()


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_outputs_of_a_kernel_are_those_of_the_convolution(padding_mode, free):
    layer = nn.Conv2d(6, 8, 3, padding=1, stride=2, groups=2, padding_mode=padding_mode, bias=False)
    spec, x = spec_of(layer), torch.randn(3, 6, 7, 9)
    index = torch.tensor([0, 3, 21, 59])  # of 3 × 4 × 5 positions
    positions = Positions(kind_of(layer), spec, index)
    samples = Samples.of(positions.patches(x), 3, free=free)
    wanted = positions.outputs(layer(x))
    torch.testing.assert_close(samples.outputs(layer.weight), wanted, rtol=1e-5, atol=1e-5)


def test_the_target_of_many_samples_is_plain_regression():
    """With a constant in the regression, as the bias takes the mean."""
    spec, x = ConvSpec(5, 3), randn(20000, 1, 5, seed=1) * torch.tensor([4.0, 2.0, 1.0, 1.0, 0.5]) + 1
    y = x[:, 0] @ randn(5, 3, seed=2) + 0.1 * randn(20000, 3, seed=3) + 4
    expected = np.linalg.lstsq(np.hstack([x[:, 0].numpy(), np.ones((20000, 1))]), y.numpy(), rcond=None)[0][:5].T
    found = Samples.of(x, 100).target(randn(*spec.weight_shape, seed=5), spec, y)
    assert relative(found.flatten(1), torch.from_numpy(expected)) < 0.01


def test_without_a_bias_the_mean_counts():
    """Plain regression through the origin, from inputs and outputs that are far from it."""
    spec, x = ConvSpec(4, 3), randn(20000, 1, 4, seed=1) + 2
    y = x[:, 0] @ randn(4, 3, seed=2) + 0.1 * randn(20000, 3, seed=3) + 1
    expected = np.linalg.lstsq(x[:, 0].numpy(), y.numpy(), rcond=None)[0].T
    found = Samples.of(x, 100, free=False).target(randn(*spec.weight_shape, seed=5), spec, y)
    assert relative(found.flatten(1), torch.from_numpy(expected)) < 0.01


@pytest.mark.parametrize("rows", [2, 9, 200])
@pytest.mark.parametrize("groups", [1, 2])
def test_with_unchanged_inputs_the_target_is_the_weight(rows, groups):
    layer = nn.Conv2d(4, 6, 3, groups=groups).double()
    spec = ConvSpec(4, 6, (3, 3), groups=groups, bias=True)
    x = randn(rows, 4, 3, 3)
    patches = kind_of(layer).patches(x, spec, torch.arange(rows))
    found = Samples.of(patches, rows).target(layer.weight.detach(), spec, layer(x).detach().flatten(1))
    assert relative(found, layer.weight) < 1e-9


def test_inputs_that_do_not_vary_leave_the_weight():
    spec, weight = ConvSpec(3, 2), randn(2, 3, 1, 1)
    found = Samples.of(torch.ones(5, 1, 3), 5).target(weight, spec, torch.ones(5, 2))
    assert relative(found, weight) < 1e-9


@pytest.mark.parametrize("shape", [(3, 6, 4, 5), (3, 7, 6), (5, 6)])
def test_outputs_at_positions(shape):
    y = randn(*shape)
    spec = ConvSpec(2, 6, linear=len(shape) != 4)
    rows = y.permute(0, 2, 3, 1).reshape(-1, 6) if len(shape) == 4 else y.reshape(-1, 6)
    index = torch.tensor([0, 3, len(rows) - 1])
    kind = KINDS[nn.Linear if spec.linear else nn.Conv2d]
    assert torch.equal(kind.outputs(y, spec, index), rows[index])
    assert torch.equal(kind.outputs(y.half(), spec, index), rows[index].half().float())
    assert torch.equal(kind.rows(y, spec), rows)
