"""Colours in a metric: both forms against plain least squares, the search against brute force and its own promises."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from cnncompress.chains.spec import ConvSpec
from cnncompress.decompositions.lines import Quadratic, Weighted, descend, find_lines, form_of, unit
from cnncompress.metrics import FROBENIUS, Metric, Moment, layer_metrics
from tests.decompositions.helpers import made_up_statistics, randn
from tests.orders import never_rises

FORMS = ["quadratic", "quadratic with gamma", "weighted"]


def positive(n: int, seed: int) -> torch.Tensor:
    root = randn(n, n, seed=seed)
    return root @ root.mT + 0.1 * torch.eye(n, dtype=torch.float64)


def problem(name: str, F: int, C: int, P: int, seed: int = 0):
    """A form, its weight [F, C·P], and for every filter the matrix of its quadratic form, [F, C·P, C·P]."""
    weight, n = randn(F, C, P, 1, seed=seed), C * P
    if name == "weighted":
        squares = randn(F, C, P, 1, seed=seed + 1).exp()
        return Weighted(weight, squares), weight.flatten(1), torch.diag_embed(squares.flatten(1))
    sigma = positive(n, seed + 1)
    gamma = randn(F, seed=seed + 2).exp() if "gamma" in name else None
    scale = torch.ones(F, dtype=torch.float64) if gamma is None else gamma
    return Quadratic(weight, sigma, gamma), weight.flatten(1), scale[:, None, None] * sigma


def least_squares(matrix: torch.Tensor, target: torch.Tensor, basis: torch.Tensor) -> tuple[float, torch.Tensor]:
    """The smallest form of target − x·basis, and x."""
    root = torch.linalg.cholesky(matrix).mT
    x = torch.linalg.lstsq(root @ basis.mT, (root @ target)[:, None]).solution[:, 0]
    return float((root @ (target - x @ basis)).square().sum()), x


@pytest.mark.parametrize("name", FORMS)
def test_coefficients_are_the_least_squares_solution(name):
    form, weight, matrices = problem(name, F=4, C=3, P=5)
    colours = unit(randn(2, 3, seed=9), torch.ones(2, 3))
    costs, coefficients = form.fit(colours)
    for k, colour in enumerate(colours):
        basis = torch.kron(colour[None], torch.eye(5, dtype=torch.float64))
        for f in range(4):
            error, solution = least_squares(matrices[f], weight[f], basis)
            assert float(costs[f, k]) == pytest.approx(error)
            torch.testing.assert_close(coefficients[f, k], solution)


@pytest.mark.parametrize("name", FORMS)
def test_a_new_colour_is_the_least_squares_solution(name):
    form, weight, matrices = problem(name, F=6, C=3, P=4)
    labels, coefficients = torch.tensor([0, 1, 1, 0, 1, 0]), randn(6, 4, seed=8)
    found = form.update(randn(2, 3), labels, coefficients)
    for k in range(2):
        mine = (labels == k).nonzero().flatten()
        basis = torch.cat([torch.kron(torch.eye(3, dtype=torch.float64), coefficients[f][None]) for f in mine], dim=1)
        _, solution = least_squares(torch.block_diag(*matrices[mine]), weight[mine].flatten(), basis)
        torch.testing.assert_close(found[k], solution / torch.linalg.vector_norm(solution))


@pytest.mark.parametrize("name", FORMS)
def test_energy_never_rises_and_is_the_form_of_the_error(name):
    steps = 0
    for seed in range(4):
        form, weight, matrices = problem(name, F=24, C=4, P=3, seed=10 * seed)
        lines = descend(form, randn(6, 4, seed=seed), 50)
        assert torch.bincount(lines.labels).tolist() == [4] * 6
        assert never_rises(lines.history)
        found = torch.einsum("fc,fp->fcp", lines.colours[lines.labels], lines.coefficients).flatten(1)
        error = torch.einsum("fi,fij,fj->", weight - found, matrices, weight - found)
        assert lines.history[-1] == pytest.approx(float(error))
        steps += len(lines.history)
    assert steps > 12


@pytest.mark.parametrize("name", FORMS)
def test_many_starts_find_the_best_colours_and_clusters(name):
    """Two colours of two channels for six filters: all angles and all divisions into equal halves."""
    form, *_ = problem(name, F=6, C=2, P=2, seed=3)
    angles = torch.linspace(0, torch.pi, 4001, dtype=torch.float64)
    costs = form.fit(torch.stack([angles.cos(), angles.sin()], dim=1))[0]
    halves = [costs[list(half)].sum(0).min() for half in combinations(range(6), 3)]
    best = min(float(one + two) for one, two in zip(halves, reversed(halves), strict=True))
    found = find_lines(form, [randn(2, 2, seed=seed) for seed in range(30)])
    assert found.history[-1] == pytest.approx(best, rel=1e-4)


def test_the_form_is_that_of_the_metric():
    weight, sigma = randn(5, 2, 3, 1), positive(6, 1)
    rows = weight.flatten(1)
    expected = torch.einsum("fi,ij,fj->f", rows, sigma, rows)
    torch.testing.assert_close(form_of(weight, Metric(sigma=Moment(sigma))).total, expected)
    gamma = positive(5, 2)
    scaled = form_of(weight, Metric(sigma=Moment(sigma), gamma=gamma)).total
    torch.testing.assert_close(scaled, gamma.diagonal() * expected)
    alpha = randn(5, 6, seed=2).exp()
    torch.testing.assert_close(form_of(weight, Metric(alpha=alpha)).total, (alpha * rows).square().sum(1))


def test_without_a_moment_there_is_no_form():
    assert form_of(randn(4, 2, 3, 3), FROBENIUS) is None
    assert form_of(randn(4, 2, 3, 3), Metric(sigma=Moment(samples=randn(5, 18)))) is None


@pytest.mark.parametrize("metric", ["data-covariance", "kronecker", "mahalanobis"])
@pytest.mark.parametrize("case", ["dead channels", "no input", "zero filters", "zero weight", "zero colours"])
def test_nothing_there_is_no_obstacle(metric, case):
    spec = ConvSpec(3, 8, (3, 3))
    statistics, weight, starts = made_up_statistics(spec), randn(8, 3, 3, 3), [randn(4, 3)]
    if case == "dead channels":
        statistics.moment[:, 9:] = 0
        statistics.moment[:, :, 9:] = 0
    elif case == "no input":
        statistics.moment.zero_()
        statistics.gradient.zero_()
        statistics.sensitivity.zero_()
    elif case == "zero colours":
        starts = [torch.zeros(4, 3)]
    else:
        weight[: 4 if case == "zero filters" else 8] = 0
    lines = find_lines(form_of(weight, layer_metrics(metric, spec, statistics)[0]), starts)
    assert torch.bincount(lines.labels).tolist() == [2] * 4
    torch.testing.assert_close(torch.linalg.vector_norm(lines.colours, dim=1), torch.ones(4, dtype=torch.float64))
    assert torch.isfinite(lines.coefficients).all()
    assert not lines.coefficients[(weight == 0).flatten(1).all(1)].any()
