"""Composite layers: costs, shares, fits against an optimiser and by hand, the scale of signals at initialisation."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn

from cnncompress.chains.compose import compose
from cnncompress.chains.modules import FactoredLayer
from cnncompress.chains.spec import ConvSpec, chain_macs, chain_params
from cnncompress.decompositions import get_method
from cnncompress.errors import UsageError
from cnncompress.metrics import FROBENIUS, layer_metrics
from tests.decompositions.helpers import (
    decide,
    factored,
    generator,
    images,
    lowest_by_lbfgs,
    made_up_statistics,
    randn,
    randomize,
)
from tests.marks import with_slow

JOIN_WFULL = {"horizontal": 3, "vertical": 3, "full": 2}


def error_of(method, spec, rank, weight, metric=FROBENIUS, refine=1):
    kernels = method.factorize(weight, spec, (rank,), [metric], refine)
    return metric.squared_error(weight - compose(method.stages(spec, (rank,)), kernels))


@pytest.mark.parametrize(
    ("shares", "rank", "counts"),
    [
        ({}, 8, [4, 4]),
        ({}, 5, [3, 2]),
        ({}, 1, [1]),
        (JOIN_WFULL, 64, [24, 24, 16]),
        (JOIN_WFULL, 4, [2, 1, 1]),
        ({"horizontal": 0, "vertical": 0, "full": 1}, 5, [5]),
    ],
)
def test_shares_of_the_basis_filters(shares, rank, counts):
    basis = get_method("composite", **shares).group_stages(ConvSpec(3, 7, (5, 3)), (rank,))[0]
    assert [branch.out_channels for branch in basis.branches] == counts


def test_params_and_macs():
    """gmp-lr-join: c/2 of 1×3, c/2 of 3×1, 1×1 of width c; join-wfull: 3c/8, 3c/8, c/4 of 3×3, 1×1."""
    spec = ConvSpec(12, 16, (3, 3), padding=(1, 1), bias=True)
    for options, weights in (
        ({}, 12 * 16 * 3 + 16 * 16),
        ({"join": "none"}, 12 * 16 * 3),
        (JOIN_WFULL, 12 * (12 * 3 + 4 * 9) + 16 * 16),
    ):
        chain = get_method("composite", **options).stages(spec, (16,))
        assert chain_params(chain) == weights + 16
        assert chain_macs(chain, (10, 11)) == weights * 110


def test_without_a_join_there_is_one_rank():
    method, spec = get_method("composite", join="none"), ConvSpec(4, 6, (3, 3))
    assert [method.rank(spec, request) for request in (2, 0.5, (3,), 1.0)] == [(6,)] * 4
    assert method.stages(spec, (2,)) == method.stages(spec, (6,))
    assert method.scratch(spec, (2,), generator())[0].shape == (6, 4, 3, 3)


def test_what_it_does_not_take():
    assert "one row or one column" in decide(nn.Conv2d(4, 4, (1, 3)), "composite").reason
    assert "channel-svd" in decide(nn.Conv2d(4, 4, 1), "composite").reason
    assert "change places" in decide(nn.Conv2d(4, 4, 3, groups=2), "composite:join=none").reason
    with pytest.raises(UsageError, match="shares from 0 on"):
        get_method("composite", horizontal=0, vertical=0)
    with pytest.raises(UsageError, match="one of own, none"):
        get_method("composite", join="network")


def test_filters_without_a_join_get_the_shape_that_holds_most_of_them():
    """By every assignment of 6 filters, 3 to the middle row and 3 to the middle column."""
    method, weight = get_method("composite", join="none"), randn(6, 2, 3, 3, seed=3)
    row, column = weight[:, :, 1].square().sum((1, 2)), weight[:, :, :, 1].square().sum((1, 2))
    kept = max(
        float(row[list(rows)].sum() + column[[f for f in range(6) if f not in rows]].sum())
        for rows in combinations(range(6), 3)
    )
    error = error_of(method, ConvSpec(2, 6, (3, 3)), 6, weight)
    assert error == pytest.approx(float(weight.square().sum()) - kept, rel=1e-12)


def test_a_filter_in_its_shape_is_regressed_on_what_it_sees():
    """Against numpy, with all filters in the middle row."""
    method, spec = get_method("composite", horizontal=1, vertical=0, join="none"), ConvSpec(2, 4, (3, 3))
    (form,) = layer_metrics("data-covariance", spec, made_up_statistics(spec))
    weight, root = randn(4, 2, 3, 3, seed=5), np.linalg.cholesky(form.sigma.dense.numpy())
    places = np.arange(18).reshape(2, 3, 3)[:, 1].flatten()
    wanted = root.T @ weight.flatten(1).numpy().T
    solution = np.linalg.lstsq(root[places].T, wanted, rcond=None)[0]
    expected = np.sum((wanted - root[places].T @ solution) ** 2)
    assert error_of(method, spec, 4, weight, form) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("metric", ["frobenius", "kronecker"])
def test_the_fit_is_no_worse_than_an_optimiser_finds(metric):
    """L-BFGS on all entries of both stages from random starts."""
    spec, method = ConvSpec(2, 5, (3, 3)), get_method("composite")
    (form,), weight = layer_metrics(metric, spec, made_up_statistics(spec)), randn(5, 2, 3, 3, seed=4)
    chain = method.stages(spec, (4,))

    def loss(*kernels):
        delta = (weight - compose(chain, kernels)).flatten(1)
        return (delta * form.apply(delta)).sum()

    starts = [(randn(4, 2, 3, 3, seed=seed), randn(5, 4, 1, 1, seed=seed + 9)) for seed in range(2)]
    lowest = min(lowest_by_lbfgs(loss, start, 60, 1e-9) for start in starts)
    assert error_of(method, spec, 4, weight, form, refine=4) <= lowest * 1.005


@pytest.mark.parametrize("options", with_slow([{"join": "none"}, JOIN_WFULL], [JOIN_WFULL]))
def test_the_variance_stays_through_thirty_layers(options):
    """Within a factor of two of the input's after 30 rectifications; without the 2 in σ² it would be 2⁻³⁰ of it.

    A single network of this width wanders further by chance, so each layer's gain is the mean of 24.
    """
    width, gain = 96, 1.0
    method, spec = get_method("composite", **options), ConvSpec(width, width, (3, 3), padding="same")
    draws, x = generator(1), randn(1, width, 4, 4, dtype=torch.float32)
    layer = FactoredLayer(method.stages(spec.replace(padding_mode="circular"), (width,)))  # no edges of zeros
    with torch.no_grad():
        for _ in range(30):
            before, squares = x, []
            for _ in range(24):
                layer.write_kernels(method.scratch(spec, (width,), draws))
                x = layer(before).relu()
                squares.append(float(x.square().mean()))
            gain *= sum(squares) / 24 / float(before.square().mean())
            assert 1 / 2 <= gain <= 2


def test_the_standard_deviation_is_that_of_the_paper():
    """σ = √(2 / Σ w·h·d) for every shape, w×h of d filters: 2 / (24·3 + 24·3 + 16·9)."""
    method, spec = get_method("composite", **JOIN_WFULL), ConvSpec(96, 64, (3, 3))
    basis, join = method.scratch(spec, (64,), generator())
    layer = FactoredLayer(method.stages(spec, (64,)), dtype=torch.float64)
    layer.write_kernels([basis, join])
    for branch in layer[0]:
        assert float(branch.weight.detach().var()) == pytest.approx(2 / 288, rel=0.06)
    assert float(join.var()) == pytest.approx(1 / 64, rel=0.06)


def test_geometry_is_kept():
    layer = randomize(nn.Conv2d(4, 6, (3, 5), stride=(2, 1), dilation=(1, 2), groups=2, padding=(1, 4)).double())
    chain = factored(layer, decide(layer, "composite:full=1", 1.0))
    dense = chain.to_dense()
    assert chain(images(layer)).shape == layer(images(layer)).shape
    assert not dense[:3, 2:].any()
    assert not dense[3:, :2].any()
