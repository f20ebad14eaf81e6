"""Metrics as scalings of the weight: what is put in is taken out again."""

from __future__ import annotations

import pytest
import torch

from cnncompress.chains.compose import compose
from cnncompress.chains.spec import ConvSpec, Permutation
from cnncompress.decompositions import REGISTRY, get_method
from cnncompress.decompositions.whitening import whiten
from cnncompress.metrics import Metric, Moment, layer_metrics
from tests.decompositions.helpers import METRIC_NAMES, generator, made_up_statistics, randn, relative

SPEC = ConvSpec(6, 8, (3, 3))
# every kind of chain: dense, depthwise and grouped stages, with and without permutations at either end
CHAINS = {
    "tucker2": ({}, (3, 4)),
    "cp": ({}, (5,)),
    "monochromatic": ({}, (4,)),
    "monochromatic of one colour": ({}, (1,)),
    "monochromatic of a colour a filter": ({}, (8,)),
    "bicluster-svd": ({}, (2, 2, 2, 3)),
    "bicluster-svd of three": ({"G": 3, "H": 4}, (3, 4, 1, 2)),
    "bicluster-svd of filters": ({"G": 1}, (1, 2, 2, 3)),
    "bicluster-svd of channels": ({"H": 1}, (2, 1, 2, 3)),
    "bicluster-svd of single channels": ({"G": 6, "H": 8}, (6, 8, 1, 1)),
    "bicluster-outer": ({}, (2, 2, 3)),
}


def chain_of(name: str):
    options, rank = CHAINS[name]
    return get_method(name.split()[0], **options).stages(SPEC, rank)


def random_kernels(chain):
    return [
        torch.randperm(s.channels, generator=generator(i))
        if isinstance(s, Permutation)
        else randn(*s.weight_shape, seed=i)
        for i, s in enumerate(chain)
    ]


@pytest.mark.parametrize("metric", METRIC_NAMES)
@pytest.mark.parametrize("name", CHAINS)
def test_undo_is_the_inverse_of_the_scaling_for_any_kernels(name, metric):
    chain = chain_of(name)
    (form,) = layer_metrics(metric, SPEC, made_up_statistics(SPEC))
    kernels = random_kernels(chain)
    _, undo = whiten(randn(8, 6, 3, 3), chain, form)
    undone = undo(kernels)
    again, _ = whiten(compose(chain, undone), chain, form)
    torch.testing.assert_close(again, compose(chain, kernels), rtol=1e-9, atol=1e-9)
    assert (metric == "frobenius") == (relative(compose(chain, undone), compose(chain, kernels)) < 1e-6)


@pytest.mark.parametrize("metric", METRIC_NAMES)
@pytest.mark.parametrize("method", [m for m in sorted(REGISTRY) if REGISTRY[m].exact and not REGISTRY[m].whitens])
@pytest.mark.parametrize("options", [{}, {"G": 3, "H": 2}])
def test_an_exact_fit_of_the_scaled_weight_is_the_weight(method, options, metric):
    if options and not method.startswith("bicluster"):
        options = {}
    fit = get_method(method, **options)
    rank, weight = fit.rank(SPEC, 1.0), randn(8, 6, 3, 3)
    (form,) = layer_metrics(metric, SPEC, made_up_statistics(SPEC))
    kernels = fit.factorize(weight, SPEC, rank, [form], refine=0)
    assert relative(compose(fit.stages(SPEC, rank), kernels), weight) < 1e-9


def spd(n: int, seed: int) -> torch.Tensor:
    X = randn(n, 3 * n, seed=seed)
    return X @ X.mT / (3 * n)


@pytest.mark.parametrize("name", ["tucker2", "cp", "monochromatic of one colour", "bicluster-svd of three"])
@pytest.mark.parametrize("kind", ["inputs", "both", "elementwise"])
def test_the_scaling_is_the_metric_where_that_is_a_product_over_channels(name, kind):
    chain, delta = chain_of(name), randn(8, 6, 3, 3)
    eye = torch.eye(9, dtype=torch.float64)
    if kind == "elementwise":
        a, b = randn(8, seed=1).exp(), randn(6, seed=2).exp()
        metric = Metric(alpha=(a[:, None] * b)[:, :, None].expand(8, 6, 9).flatten(1))
    else:
        inputs, outputs = spd(6, 1), spd(8, 2)
        if name.startswith("bicluster"):  # grouped at both ends: only diagonal matrices can pass through
            inputs, outputs = inputs.diagonal().diag(), outputs.diagonal().diag()
        metric = Metric(sigma=Moment(torch.kron(inputs, eye)), gamma=outputs if kind == "both" else None)
    scaled, _ = whiten(delta, chain, metric)
    assert float(scaled.square().sum()) == pytest.approx(metric.squared_error(delta), rel=1e-9)


def test_the_channel_moment_is_the_mean_over_kernel_positions():
    moment = spd(54, 3)
    scaled, _ = whiten(randn(8, 6, 3, 3), chain_of("tucker2"), Metric(sigma=Moment(moment)))
    blocks = sum(moment[p::9, p::9] for p in range(9)) / 9
    expected = torch.einsum("fcij,fdij,cd->", randn(8, 6, 3, 3), randn(8, 6, 3, 3), blocks)
    assert float(scaled.square().sum()) == pytest.approx(float(expected), rel=1e-9)
