"""The metrics against independent computations; requests that they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cnncompress.chains.compose import compose
from cnncompress.chains.spec import Call, ConvSpec
from cnncompress.decompositions import get_method
from cnncompress.errors import CompressError, UsageError
from cnncompress.fitting import Fitting, fit_layer
from cnncompress.metrics import (
    FROBENIUS,
    REGISTRY,
    Metric,
    Moment,
    get_metric,
    layer_metrics,
    relative_error,
    squared_error,
)
from cnncompress.metrics.statistics import LayerStatistics
from cnncompress.network.kinds import spec_of
from cnncompress.planning import Choice, plan_layer
from tests.decompositions.helpers import made_up_statistics, randn, randomize

LINEAR = ConvSpec(12, 7, linear=True)
CONV = ConvSpec(3, 7, (2, 2))


def root(matrix: np.ndarray, power: float = 0.5) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return vectors * values**power @ vectors.T


def sides(metric: Metric, F: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Γ and Σ of a metric without α."""
    gamma = np.eye(F) if metric.gamma is None else metric.gamma.numpy()
    return gamma, np.eye(n) if metric.sigma is None else metric.sigma.dense.numpy()


# --- the second moment ---


def moments(n: int = 12, rows: int = 5) -> tuple[Moment, Moment]:
    """The same matrix, dense and as samples."""
    samples = randn(rows, n)
    return Moment(samples.mT @ samples + 0.3 * torch.eye(n, dtype=torch.float64)), Moment(samples=samples, ridge=0.3)


def test_dense_and_sampled_moments_are_the_same_matrix():
    dense, sampled = moments()
    first, second = randn(4, 12, seed=1), randn(3, 12, seed=2)
    torch.testing.assert_close(sampled.times(first), dense.times(first))
    torch.testing.assert_close(sampled.gram(first), dense.gram(first))
    torch.testing.assert_close(sampled.gram(first, second), dense.gram(first, second))
    torch.testing.assert_close(dense.gram(first, second), first @ dense.dense @ second.mT)
    torch.testing.assert_close(sampled.diagonal_blocks(4), dense.diagonal_blocks(4))
    expected = sum(dense.dense[p::3, p::3] for p in range(3)) / 3
    torch.testing.assert_close(dense.diagonal_blocks(4), expected)
    assert torch.equal(Moment().times(first), first)
    assert torch.equal(Moment().diagonal_blocks(4), torch.eye(4, dtype=torch.float64))


def test_halfway_to_the_frobenius_norm():
    dense, sampled = moments()
    delta = randn(4, 12, seed=1)
    level = dense.dense.trace() / 12
    gamma = randn(4, 4, seed=2)
    gamma = gamma @ gamma.mT
    for moment in (dense, sampled):
        plain = Metric(moment, gamma).squared_error(delta)
        expected = plain + float(level * (gamma * (delta @ delta.mT)).sum())
        assert Metric(moment, gamma).halfway().squared_error(delta) == pytest.approx(expected)
    assert FROBENIUS.halfway() is FROBENIUS
    silent = Moment(torch.zeros(12, 12)).halfway()
    torch.testing.assert_close(silent.dense, torch.eye(12, dtype=torch.float64))


@pytest.mark.parametrize("rows", [3, 12, 30])
def test_samples_and_their_moment_give_the_same_metric(rows):
    x = randn(rows, 12).float()
    x = x - x.mean(0)
    mean = torch.zeros(1, 12)
    (one,) = layer_metrics("data-covariance", LINEAR, LayerStatistics(1, rows, mean, moment=(x.mT @ x / rows)[None]))
    (two,) = layer_metrics("data-covariance", LINEAR, LayerStatistics(1, rows, mean, samples=x))
    delta = randn(7, 12, seed=1)
    torch.testing.assert_close(two.gram(delta), one.gram(delta), rtol=1e-5, atol=1e-6)


# --- the optimum of the closed forms ---


def alternating_least_squares(W: np.ndarray, P: np.ndarray, rank: int, seed: int, sweeps: int = 200) -> float:
    """The smallest ‖P · vec(W − A·B)‖² found from a random start, by numpy's least squares in A and B in turn."""
    F, n = W.shape
    B = np.random.default_rng(seed).standard_normal((rank, n))
    target, error = P @ W.ravel(), np.inf
    for _ in range(sweeps):
        A = np.linalg.lstsq(P @ np.kron(np.eye(F), B.T), target, rcond=None)[0].reshape(F, rank)
        design = P @ np.kron(A, np.eye(n))
        B = np.linalg.lstsq(design, target, rcond=None)[0].reshape(rank, n)
        previous, error = error, float(np.sum((design @ B.ravel() - target) ** 2))
        if previous - error < 1e-10 * error:
            break
    return error


@pytest.mark.parametrize("rank", [1, 3, 6])
@pytest.mark.parametrize("name", ["frobenius", "data-covariance", "kronecker"])
@pytest.mark.parametrize(("method", "spec"), [("svd", LINEAR), ("channel-svd", CONV)])
def test_matrix_svd_is_the_optimum_of_the_metric(method, spec, name, rank):
    """Against matrix roots and numpy's SVD: W̃ = Γ^-½ · [Γ^½ · W · Σ^½]_K · Σ^-½."""
    weight = randn(*spec.weight_shape)
    (metric,) = layer_metrics(name, spec, made_up_statistics(spec, decay=3.0))
    W = weight.flatten(1).numpy()
    gamma, sigma = sides(metric, *W.shape)
    u, s, vt = np.linalg.svd(root(gamma) @ W @ root(sigma), full_matrices=False)
    expected = root(gamma, -0.5) @ (u[:, :rank] * s[:rank]) @ vt[:rank] @ root(sigma, -0.5)
    fit = get_method(method)
    found = compose(fit.stages(spec, (rank,)), fit.factorize(weight, spec, (rank,), [metric]))
    np.testing.assert_allclose(found.flatten(1).numpy(), expected, rtol=1e-6, atol=1e-8)
    assert metric.squared_error(weight - found) == pytest.approx(float(np.sum(s[rank:] ** 2)), rel=1e-9)
    searched = [alternating_least_squares(W, np.kron(root(gamma), root(sigma)), rank, seed) for seed in range(3)]
    assert min(searched) >= metric.squared_error(weight - found) * (1 - 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_mahalanobis_has_the_rank_and_is_near_the_best_of_a_random_search(rank, seed):
    spec = ConvSpec(8, 6, linear=True)
    weight = randn(*spec.weight_shape, seed=seed)
    (metric,) = layer_metrics("mahalanobis", spec, made_up_statistics(spec, seed=seed))
    fit, W = get_method("svd"), weight.flatten(1).numpy()

    def error(metrics, refine: int) -> float:
        found = compose(fit.stages(spec, (rank,)), fit.factorize(weight, spec, (rank,), metrics, refine))
        values = np.linalg.svd(found.flatten(1).numpy(), compute_uv=False)
        assert values[rank:].max(initial=0) < 1e-12 * values[0]
        return metric.squared_error(weight - found)

    plain, paper, refitted, swept = error(None, 0), error([metric], 0), error([metric], 1), error([metric], 30)
    assert swept <= refitted <= paper
    assert refitted <= plain
    P = np.diag(metric.alpha.numpy().ravel())
    best = min(alternating_least_squares(W, P, rank, start, sweeps=60) for start in range(8))
    assert swept <= best * 1.05


# --- the forms ---


def test_mahalanobis_form_and_scaling():
    statistics = made_up_statistics(CONV)
    (metric,) = layer_metrics("mahalanobis", CONV, statistics)
    scale = statistics.sensitivity.double().sqrt()
    alpha = scale / scale.mean() + 0.5
    delta = randn(7, 3, 2, 2)
    assert metric.squared_error(delta) == pytest.approx(float((alpha * delta).square().sum()))
    torch.testing.assert_close(metric.apply(delta.flatten(1)), (alpha.square() * delta).flatten(1))


@pytest.mark.parametrize("name", REGISTRY)
def test_apply_is_half_the_gradient_and_groups_add_up(name):
    spec = ConvSpec(4, 6, (3, 2), groups=2)
    metrics = layer_metrics(name, spec, made_up_statistics(spec))
    delta = randn(*spec.weight_shape)
    total = 0.0
    for metric, part in zip(metrics, delta.chunk(2), strict=True):
        form = float((part.flatten(1) * metric.apply(part.flatten(1))).sum())
        assert metric.squared_error(part) == pytest.approx(form, rel=1e-9)
        total += form
    assert squared_error(metrics, delta) == pytest.approx(total, rel=1e-9)
    weight = randn(*spec.weight_shape, seed=1)
    expected = (total / squared_error(metrics, weight)) ** 0.5
    assert relative_error(metrics, weight, weight - delta) == pytest.approx(expected, rel=1e-9)
    half = relative_error(metrics, weight.bfloat16(), weight.bfloat16() / 2)
    assert half == pytest.approx(0.5, rel=1e-6)


def test_relative_error_where_something_vanishes():
    zero, one = torch.zeros(2, 3, 1, 1), torch.ones(2, 3, 1, 1)
    assert relative_error([FROBENIUS], zero, zero) == 0
    assert relative_error([FROBENIUS], zero, one) == float("inf")
    assert relative_error([FROBENIUS], one, zero) == 1


# --- requests that cannot be met ---


@pytest.mark.parametrize("name", [m for m in REGISTRY if m != "frobenius"])
def test_a_metric_without_what_it_needs_is_one_line(name):
    with pytest.raises(UsageError, match=f"metric {name} needs calibration images"):
        layer_metrics(name, CONV, None)
    empty = LayerStatistics(1, 0, torch.zeros(1, 12))
    with pytest.raises(CompressError, match="collect them for") as caught:
        layer_metrics(name, CONV, empty)
    assert "\n" not in str(caught.value)
    with pytest.raises(CompressError, match="collect them for"):
        layer_metrics(name, CONV, LayerStatistics(1, 0, torch.zeros(1, 12), samples=torch.zeros(0, 12)))


def test_unknown_metric():
    with pytest.raises(UsageError, match=r"unknown metric 'cronecker'.*did you mean 'kronecker'"):
        layer_metrics("cronecker", CONV, None)


@pytest.mark.parametrize("name", REGISTRY)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_one_line(name, bad):
    layer = randomize(nn.Conv2d(3, 7, 2))
    with torch.no_grad():
        layer.weight[2, 1, 0, 0] = bad
    centred = get_metric(name).centred
    decision = plan_layer(Call(0, spec_of(layer), ((5, 5),)), Choice("channel-svd", 2), force=True, centred=centred)
    with pytest.raises(CompressError, match="layer: the weight holds NaN") as caught:
        fit_layer("layer", layer, decision, Fitting(name, made_up_statistics(CONV)))
    assert "\n" not in str(caught.value)
