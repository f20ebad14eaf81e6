"""Root modules: costs, groups by depth, and fits against every partition and an optimiser that knows no structure."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn

import cnncompress as cc
from cnncompress.chains.compose import compose
from cnncompress.chains.spec import ConvSpec, Permutation, chain_macs, chain_params
from cnncompress.decompositions import get_method
from cnncompress.decompositions.parts import fit_blocks, fit_products
from cnncompress.errors import UsageError
from cnncompress.metrics import FROBENIUS, layer_metrics
from tests.decompositions.helpers import (
    decide,
    factored,
    images,
    lowest_by_lbfgs,
    made_up_statistics,
    randn,
    randomize,
    relative,
)
from tests.orders import never_rises

SPEC = ConvSpec(6, 6, (3, 1))


def halves(n: int) -> list[tuple[list[int], list[int]]]:
    """All ways to divide 0..n−1 into two sets of equal size."""
    firsts = [(0, *rest) for rest in combinations(range(1, n), n // 2 - 1)]
    return [(list(first), [i for i in range(n) if i not in first]) for first in firsts]


def error_at(method, spec, rank, weight, metric=FROBENIUS, refine=1):
    kernels = method.factorize(weight, spec, (rank,), [metric], refine)
    return metric.squared_error(weight - compose(method.stages(spec, (rank,)), kernels))


# --- shapes and costs ---


@pytest.mark.parametrize(("C", "F", "groups"), [(12, 18, 3), (8, 8, 8), (16, 32, 4)])
def test_params_and_macs(C, F, groups):
    """F·C/g·kh·kw at every output position, and F² for the 1×1, unless the network has that already."""
    spec = ConvSpec(C, F, (3, 5), stride=(2, 1), bias=True)
    h, w = (11 - 3) // 2 + 1, 13 - 5 + 1
    own, network = get_method("root"), get_method("root", join="network")
    grouped = F * C // groups * 15
    assert chain_macs(own.stages(spec, (C // groups,)), (11, 13)) == (grouped + F * F) * h * w
    assert chain_params(own.stages(spec, (C // groups,))) == grouped + F * F + F
    assert chain_macs(network.stages(spec, (C // groups,)), (11, 13)) == grouped * h * w
    assert chain_params(network.stages(spec, (C // groups,))) == grouped + F


@pytest.mark.parametrize(
    ("options", "rank", "permuted"),
    [
        ({}, 3, [0]),
        ({}, 1, []),  # a group for every channel: nothing to sort
        ({}, 6, []),
        ({"order": "given"}, 3, []),
        ({"join": "network"}, 3, [0, 2]),
        ({"join": "network"}, 1, [1]),
        ({"join": "network"}, 6, []),
        ({"join": "network", "order": "given"}, 3, []),
    ],
)
def test_permutations_stand_where_they_change_something(options, rank, permuted):
    chain = get_method("root", **options).stages(SPEC, (rank,))
    assert [i for i, stage in enumerate(chain) if isinstance(stage, Permutation)] == permuted


# --- ranks and groups ---


def test_a_request_becomes_the_channels_of_equal_groups():
    method, spec = get_method("root"), ConvSpec(12, 18, (3, 3))  # 1, 2, 3 or 6 groups
    assert [method.rank(spec, r) for r in (1, 2, 3, 5, 6, 11, 12)] == [(2,), (2,), (2,), (4,), (6,), (6,), (12,)]
    assert [method.rank(spec, r) for r in (0.1, 0.5, 1.0)] == [(2,), (6,), (12,)]
    assert method.rank(spec, (4,)) == (4,)
    with pytest.raises(UsageError, match="possible are 2, 4, 6, 12"):
        method.rank(spec, (3,))


def test_groups_fix_the_rank():
    layer = nn.Conv2d(12, 18, 3)
    assert decide(layer, "root:groups=3").rank == (4,)
    assert decide(layer, "root:channels=6").rank == (6,)
    assert "12 channels and 18 filters do not make 8 equal groups" in decide(layer, "root:groups=8").reason
    assert "the layer as it is" in decide(layer, "root:groups=1").reason
    assert "make no equal groups" in decide(nn.Conv2d(3, 64, 7), "root").reason
    assert "order=given" in decide(nn.Conv2d(8, 8, 3, groups=2), "root").reason
    assert decide(nn.Conv2d(8, 8, 3, groups=2), "root:order=given,groups=2").chain[0].groups == 4
    assert "channel-svd" in decide(nn.Conv2d(8, 8, 1), "root").reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ({"groups": "8"}, "8 4 2 1 1"),
        ({"groups": "8", "topology": "tree"}, "1 1 2 4 8"),
        ({"groups": "8", "topology": "column"}, "8 8 8 8 8"),
        ({"groups": "16/4/2"}, "16 4 2 2 2"),
    ],
)
def test_groups_by_depth(text, expected):
    """Root-8 of the paper: 8, 4, 2, 1 from one resolution to the next."""
    method = get_method("root", **text)
    assert [method.at_depth(i, 5).settings["groups"] for i in range(5)] == expected.split()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"groups": "eight"}, "as 8/4/2/1, not 'eight'"),
        ({"groups": "8/0"}, "from 1 on"),
        ({"topology": "roots"}, "did you mean 'root'"),
        ({"join": "none"}, "one of own, network"),
        ({"order": "random"}, "one of clustered, given"),
    ],
)
def test_options_that_make_no_sense(options, words):
    with pytest.raises(UsageError, match=words):
        get_method("root", **options)


def test_a_network_gets_its_groups_by_resolution():
    """The layers that 4 divides: two at 16, one at 8, one at 4. The first layer has three channels."""
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.Conv2d(16, 16, 3, padding=1, stride=2),
        nn.Conv2d(16, 16, 1),
        nn.Conv2d(16, 16, 3, padding=1, stride=2),
        nn.Flatten(),
        nn.Linear(256, 4),
    )
    planned = cc.plan(network, torch.zeros(1, 3, 16, 16), method="root:groups=4,restarts=2")
    assert {name: p.rank for name, p in planned.layers.items()} == {"1": (4,), "2": (4,), "3": (8,)}
    assert planned.layers["3"].options["restarts"] == 2
    assert "3 channels and 16 filters" in planned.kept["0"]
    assert "one group is asked for here" in planned.kept["5"]


# --- fits ---


@pytest.mark.parametrize("seed", range(3))
def test_the_partition_is_the_best_of_all(seed):
    """Of a part [F, 3·kh], rank F/2 leaves the squares of the singular values beyond it."""
    weight = randn(*SPEC.weight_shape, seed=seed)
    tails = [
        sum(float((np.linalg.svd(weight[:, part].flatten(1).numpy(), compute_uv=False)[3:] ** 2).sum()) for part in two)
        for two in halves(6)
    ]
    assert error_at(get_method("root"), SPEC, 3, weight) == pytest.approx(min(tails), rel=1e-9)
    assert error_at(get_method("root", order="given"), SPEC, 3, weight) == pytest.approx(tails[0], rel=1e-9)


@pytest.mark.parametrize("metric", ["data-covariance", "kronecker"])
def test_the_fit_is_no_worse_than_an_optimiser_finds(metric):
    """L-BFGS on all entries of both stages from three random starts, in channels as they come."""
    spec, method = ConvSpec(4, 6, (2, 1)), get_method("root", order="given")
    (form,), weight = layer_metrics(metric, spec, made_up_statistics(spec)), randn(*spec.weight_shape, seed=4)
    sigma = form.sigma.dense
    gamma = torch.eye(6, dtype=torch.float64) if form.gamma is None else form.gamma

    def loss(first, last):
        delta = weight.flatten(1) - torch.cat([last[0] @ first[0], last[1] @ first[1]], 1)
        return torch.trace(gamma @ delta @ sigma @ delta.mT)

    starts = [(randn(2, 3, 4, seed=seed), randn(2, 6, 3, seed=seed + 9)) for seed in range(3)]
    lowest = min(lowest_by_lbfgs(loss, start, 120, 1e-12) for start in starts)
    assert error_at(method, spec, 2, weight, form, refine=8) <= lowest * 1.005


@pytest.mark.parametrize("metric", ["frobenius", "data-covariance", "kronecker"])
def test_no_sweep_over_the_parts_raises_the_error(metric):
    spec = ConvSpec(8, 12, (3, 3))
    (form,) = layer_metrics(metric, spec, made_up_statistics(spec))
    weight, parts = randn(*spec.weight_shape).flatten(1), [*torch.arange(72).reshape(4, 18)]
    errors = [fit_products(weight, parts, [3] * 4, form, sweeps).error for sweeps in (0, 1, 2, 5)]
    assert never_rises(errors)


def test_filters_and_channels_in_blocks_are_the_best_of_all():
    """Without Σ, what is left is the energy outside of the blocks."""
    spec, method = ConvSpec(6, 4, (1, 2)), get_method("root", join="network")
    weight = randn(*spec.weight_shape, seed=2)
    energy = weight.square().sum((2, 3))
    left = [
        float(energy.sum() - energy[f1][:, c1].sum() - energy[f2][:, c2].sum())
        for c1, c2 in halves(6)
        for f1, f2 in halves(4)
        for c1, c2 in ((c1, c2), (c2, c1))
    ]
    assert error_at(method, spec, 3, weight) == pytest.approx(min(left), rel=1e-9)


def test_filters_in_blocks_are_regressed_on_what_they_see():
    """Against numpy: each filter by least squares on the half of the inputs that explains it better, two a half."""
    spec = ConvSpec(4, 4, (2, 1))
    (form,) = layer_metrics("data-covariance", spec, made_up_statistics(spec))
    weight, sigma = randn(*spec.weight_shape, seed=1).flatten(1).numpy(), form.sigma.dense.numpy()
    root, left = np.linalg.cholesky(sigma), np.zeros((4, 2))
    for part in range(2):
        seen = root[4 * part : 4 * part + 4]  # [inputs of the half, n]
        for f in range(4):
            solution = np.linalg.lstsq(seen.T, root.T @ weight[f], rcond=None)[0]
            left[f, part] = np.sum((root.T @ weight[f] - seen.T @ solution) ** 2)
    expected = min(left[a, 0].sum() + left[b, 1].sum() for one, two in halves(4) for a, b in ((one, two), (two, one)))
    fitted = fit_blocks(torch.from_numpy(weight).reshape(spec.weight_shape), torch.arange(4), 2, form)
    assert fitted.error == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("options", ["order=given", "order=given,join=network"])
def test_grouped_layers_in_their_own_order(options):
    layer = randomize(nn.Conv2d(8, 12, 3, groups=2, stride=2, padding=1, padding_mode="circular").double())
    x = images(layer)
    full = factored(layer, decide(layer, f"root:{options}", 1.0))
    assert relative(full(x), layer(x)) < 1e-10
    half = decide(layer, f"root:{options}", 2)
    assert half.chain[0].groups == 4
    assert relative(factored(layer, half).to_dense(), full.to_dense()) < 1
