"""Least squares in single kernels against explicit design matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cnncompress.chains.compose import compose
from cnncompress.chains.spec import ConvSpec, Permutation
from cnncompress.decompositions import get_method
from cnncompress.decompositions import refine as refine_module
from cnncompress.decompositions.refine import error_of, improve_stage, products, refine, refit_last
from cnncompress.metrics import REGISTRY, Metric, layer_metrics
from tests.decompositions.helpers import generator, made_up_statistics, randn
from tests.orders import never_rises

SPEC = ConvSpec(4, 6, (3, 2))
CHAINS = {
    "spatial-svd": (2,),
    "channel-svd": (2,),
    "tucker2": (2, 3),
    "cp": (3,),
    "monochromatic": (3,),
    "monochromatic of one colour": (1,),
    "bicluster-svd": (2, 2, 1, 2),
    "bicluster-outer": (2, 2, 1),
}


def setting(name: str, metric: str):
    """A chain with random kernels and shuffled permutations, a random weight, and a metric."""
    chain = get_method(name.split()[0]).stages(SPEC, CHAINS[name])
    kernels = [
        torch.randperm(s.channels, generator=generator(i))
        if isinstance(s, Permutation)
        else randn(*s.weight_shape, seed=10 + i)
        for i, s in enumerate(chain)
    ]
    (form,) = layer_metrics(metric, SPEC, made_up_statistics(SPEC))
    return chain, kernels, randn(*SPEC.weight_shape, seed=1), form


def root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return vectors * np.sqrt(values) @ vectors.T


def form_root(metric: Metric, F: int, n: int) -> np.ndarray:
    """Q [F·n, F·n] with ‖Q · vec(Δ)‖² the metric's squared error."""
    if metric.alpha is not None:
        return np.diag(metric.alpha.double().numpy().ravel())
    sigma = np.eye(n) if metric.sigma is None else metric.sigma.dense.numpy()
    gamma = np.eye(F) if metric.gamma is None else metric.gamma.numpy()
    return np.kron(root(gamma), root(sigma))


def linear_problem(chain, kernels, i: int, weight, metric) -> tuple[np.ndarray, np.ndarray]:
    """M, b with ‖M · vec(kernel i) - b‖² the metric's squared error."""
    columns = []
    for entry in torch.eye(kernels[i].numel(), dtype=torch.float64):
        columns.append(compose(chain, [*kernels[:i], entry.reshape(kernels[i].shape), *kernels[i + 1 :]]).flatten())
    Q = form_root(metric, len(weight), weight[0].numel())
    return Q @ torch.stack(columns, dim=1).numpy(), Q @ weight.flatten().numpy()


def least_error(chain, kernels, i: int, weight, metric) -> float:
    """The smallest squared error over kernel `i`."""
    design, target = linear_problem(chain, kernels, i, weight, metric)
    solution = np.linalg.lstsq(design, target, rcond=None)[0]
    return float(np.sum((design @ solution - target) ** 2))


@pytest.mark.parametrize("metric", REGISTRY)
@pytest.mark.parametrize("name", CHAINS)
def test_the_last_stage_is_the_least_squares_solution(monkeypatch, name, metric):
    monkeypatch.setattr(
        refine_module, "GRADIENT_STEPS", 300
    )  # for groups that the second moment of the gradients ties together
    chain, kernels, weight, form = setting(name, metric)
    last = max(i for i, s in enumerate(chain) if isinstance(s, ConvSpec))
    best = least_error(chain, kernels, last, weight, form)
    found = refit_last(chain, kernels, weight, form)
    assert all(torch.equal(a, b) for i, (a, b) in enumerate(zip(found, kernels, strict=True)) if i != last)
    assert error_of(chain, found, weight, form) == pytest.approx(best, rel=1e-7)


@pytest.mark.parametrize("metric", REGISTRY)
@pytest.mark.parametrize("name", CHAINS)
def test_every_stage_goes_down_to_its_optimum(monkeypatch, name, metric):
    chain, kernels, weight, form = setting(name, metric)
    for i in (i for i, s in enumerate(chain) if isinstance(s, ConvSpec)):
        errors = [error_of(chain, kernels, weight, form)]
        for steps in (1, 3, 12, 300):
            monkeypatch.setattr(refine_module, "GRADIENT_STEPS", steps)
            errors.append(error_of(chain, improve_stage(chain, kernels, i, weight, form), weight, form))
        assert never_rises(errors)
        assert errors[-1] == pytest.approx(least_error(chain, kernels, i, weight, form), rel=1e-7)


@pytest.mark.parametrize("metric", REGISTRY)
@pytest.mark.parametrize("name", CHAINS)
def test_sweeps_never_raise_the_error_and_no_sweep_changes_nothing(name, metric):
    chain, kernels, weight, form = setting(name, metric)
    assert all(a is b for a, b in zip(refine(chain, kernels, weight, form, 0), kernels, strict=True))
    errors = [error_of(chain, refine(chain, kernels, weight, form, n), weight, form) for n in range(5)]
    assert never_rises(errors)
    assert errors[4] < errors[1] < errors[0]


@pytest.mark.parametrize("metric", REGISTRY)
@pytest.mark.parametrize("name", CHAINS)
def test_a_ridge_is_paid_beside_the_error(monkeypatch, name, metric):
    """The sum of both is that of numpy on the stacked problem; the closed form weighs filters as Γ does."""
    monkeypatch.setattr(refine_module, "GRADIENT_STEPS", 300)
    chain, kernels, weight, form = setting(name, metric)
    stages = [i for i, s in enumerate(chain) if isinstance(s, ConvSpec)]
    for i in stages:
        ridge = 0.1 * randn(*kernels[i].shape[1:], seed=5).square().expand(kernels[i].shape)
        paid = np.diag(ridge.sqrt().flatten().numpy())
        found = improve_stage(chain, kernels, i, weight, form, ridge)
        if i == stages[-1] and not (form.gamma is not None and chain[i].groups > 1):
            found = refit_last(chain, kernels, weight, form, ridge)
            if form.gamma is not None:
                gamma = form.gamma.numpy()
                paid = np.kron(root(gamma / gamma.diagonal().mean()), np.diag(ridge[0].sqrt().flatten().numpy()))
        design, target = linear_problem(chain, kernels, i, weight, form)
        design, target = np.vstack([design, paid]), np.append(target, np.zeros(len(paid)))
        solution = np.linalg.lstsq(design, target, rcond=None)[0]
        cost = error_of(chain, found, weight, form) + float(np.sum((paid @ found[i].flatten().numpy()) ** 2))
        assert cost == pytest.approx(float(np.sum((design @ solution - target) ** 2)), rel=1e-7)


@pytest.mark.parametrize("metric", ["frobenius", "data-covariance", "kronecker"])
@pytest.mark.parametrize("name", CHAINS)
def test_products_are_those_of_the_chains_of_unit_kernels(name, metric):
    chain, kernels, _, form = setting(name, metric)
    last = max(i for i, s in enumerate(chain) if isinstance(s, ConvSpec))
    before, groups = compose(chain[:last], kernels[:last]), chain[last].groups
    unit = torch.zeros_like(kernels[last])
    for g, part in enumerate(before.chunk(groups)):
        rows = []
        for i in range(unit[0].numel()):
            unit.zero_()[g * len(unit) // groups].view(-1)[i] = 1
            rows.append(compose(chain[: last + 1], [*kernels[:last], unit])[g * len(unit) // groups].flatten())
        features = torch.stack(rows)
        sigma = torch.eye(features.shape[1]).double() if form.sigma is None else form.sigma.dense.double()
        seen, inner = products(part, kernels[last].shape[2:], form)
        torch.testing.assert_close(seen, features @ sigma)
        torch.testing.assert_close(inner, features @ sigma @ features.mT)


@pytest.mark.parametrize("name", CHAINS)
def test_conjugate_gradients_take_over_from_single_filters_in_wide_stages(monkeypatch, name):
    monkeypatch.setattr(refine_module, "ROWWISE_CHANNELS", 0)
    monkeypatch.setattr(refine_module, "GRADIENT_STEPS", 300)
    chain, kernels, weight, form = setting(name, "mahalanobis")
    last = max(i for i, s in enumerate(chain) if isinstance(s, ConvSpec))
    found = refit_last(chain, kernels, weight, form)
    best = least_error(chain, kernels, last, weight, form)
    assert error_of(chain, found, weight, form) == pytest.approx(best, rel=1e-7)


def test_an_exact_chain_is_left_as_it_is():
    chain, kernels, _, form = setting("tucker2", "data-covariance")
    weight = compose(chain, kernels)
    again = refine(chain, kernels, weight, form, 3)
    assert all(torch.equal(a, b) for a, b in zip(again, kernels, strict=True))
