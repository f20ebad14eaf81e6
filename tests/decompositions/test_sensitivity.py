"""Fits of bounded sensitivity: what it is, what it costs, that it holds where components would grow without end."""

from __future__ import annotations

from math import log

import pytest
import torch
from torch.autograd.functional import jacobian

from cnncompress.chains.spec import ConvSpec
from cnncompress.decompositions import cp
from cnncompress.decompositions import sensitivity as sensitivity_module
from cnncompress.decompositions.cp import CP, fit_factors
from cnncompress.decompositions.refine import error_of, refine
from cnncompress.decompositions.sensitivity import PRICE, Bounded, balanced, component_factors, price, sensitivity
from cnncompress.metrics import REGISTRY, layer_metrics
from tests.decompositions.helpers import made_up_statistics, randn, relative
from tests.marks import with_slow
from tests.orders import never_rises


def total(factors) -> torch.Tensor:
    return torch.einsum("fk,ck,pk->fcp", *factors)


def squares(factors) -> list[torch.Tensor]:
    return [f.square().sum(0) for f in factors]


def relative_sensitivity(factors, norm: float) -> float:
    """S / S₀, S₀ by hand: K orthogonal components of norm w / √K have 3 · K · (w / √K)^(4/3)."""
    rank = factors[0].shape[1]
    return sensitivity(squares(factors)) / (3 * rank * (norm / rank**0.5) ** (4 / 3))


def component_norms(factors) -> float:
    """The root of the summed squares of the components' norms: that of the sum where they are orthogonal."""
    a, b, d = squares(factors)
    return float((a * b * d).sum().sqrt())


def lowered(factors, tensor) -> float:
    """What a fit lowers."""
    return 2 * log(relative(total(factors), tensor)) + PRICE * relative_sensitivity(factors, float(tensor.norm()))


def free(monkeypatch) -> None:
    """From here on sensitivity has no price."""
    monkeypatch.setattr(sensitivity_module, "PRICE", 0.0)


def border(seed: int) -> torch.Tensor:
    """x∘x∘v + x∘v∘x + v∘x∘x, each side with its own x and v: of rank 3, and a limit of sums of two outer products."""
    a, b, d = ([*randn(2, n, seed=seed + n)] for n in (5, 4, 6))
    return sum(torch.einsum("i,j,k->ijk", a[i], b[j], d[k]) for i, j, k in ((0, 0, 1), (0, 1, 0), (1, 0, 0)))


def test_sensitivity_is_the_squared_norm_of_the_derivative():
    factors = tuple(randn(n, 3, seed=n) for n in (4, 5, 2))
    parts = jacobian(lambda *f: torch.einsum("fk,ck,pk->fcp", *f), factors)
    moved = sum(float(p.square().sum()) / n for p, n in zip(parts, (4, 5, 2), strict=True))  # by 1 / √n an entry
    assert sensitivity(squares(factors)) == pytest.approx(moved)


def test_balanced_factors_are_the_least_sensitive():
    factors = tuple(randn(n, 3, seed=n) for n in (4, 5, 2))
    best = balanced(factors)
    torch.testing.assert_close(total(best), total(factors))
    least = sensitivity(squares(best))
    for seed in range(10):
        one, other = randn(2, 3, seed=seed).exp()
        again = [best[0] * one, best[1] * other, best[2] / (one * other)]
        assert sensitivity(squares(again)) >= least * (1 - 1e-12)


def test_orthogonal_components_of_equal_size_have_a_relative_sensitivity_of_one():
    factors = [3.0 * torch.linalg.qr(randn(n, 4, seed=n))[0] for n in (9, 7, 5)]
    norm = float(total(factors).norm())
    assert relative_sensitivity(factors, norm) == pytest.approx(1)
    assert price(norm, 4) == pytest.approx(PRICE / sensitivity(squares(factors)))


@pytest.mark.parametrize("seed", with_slow(range(4), (1, 2, 3)))
def test_a_tensor_without_a_best_fit_of_its_rank_has_a_bounded_one(monkeypatch, seed):
    """Its components grow with the sweeps, and the error falls with them; not so where growing has a price."""
    monkeypatch.setattr(cp, "TOLERANCE", 0.0)
    tensor = border(seed)
    norm, sweeps = float(tensor.norm()), (200, 2000)
    bounded = [fit_factors(tensor, 2, n) for n in sweeps]
    assert lowered(bounded[1], tensor) <= lowered(bounded[0], tensor) <= 0
    free(monkeypatch)
    grown = [fit_factors(tensor, 2, n) for n in sweeps]
    assert component_norms(grown[1]) > 2 * component_norms(grown[0])
    assert relative(total(grown[1]), tensor) < relative(total(grown[0]), tensor) / 4
    assert component_norms(bounded[1]) < component_norms(grown[1]) / 2
    # E falls as the fourth power of the norm n of the components and S / S₀ grows as n^(4/3): log E + p · S / S₀ is
    # least where p · S / S₀ = 3
    assert relative_sensitivity(bounded[1], norm) <= 1.05 * 3 / PRICE


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("shape", "rank"), [((8, 6, 9), 14), ((12, 12, 9), 32), ((16, 8, 3), 7)])
def test_a_bounded_fit_is_about_as_good(monkeypatch, shape, rank, seed):
    """Even of weights without structure; local optima of the same rank differ by some percent themselves."""
    tensor = randn(*shape, seed=seed)
    norm, bounded = float(tensor.norm()), fit_factors(tensor, rank, 300)
    free(monkeypatch)
    unbounded = fit_factors(tensor, rank, 300)
    assert relative_sensitivity(bounded, norm) < relative_sensitivity(unbounded, norm) / 2
    assert relative(total(bounded), tensor) <= 1.25 * relative(total(unbounded), tensor)


@pytest.mark.few(1)
@pytest.mark.parametrize("metric", REGISTRY)
def test_sweeps_in_a_metric_keep_the_bound_without_raising_the_error(monkeypatch, metric):
    spec, rank = ConvSpec(12, 16, (3, 3)), (36,)
    weight, (form,) = randn(*spec.weight_shape), layer_metrics(metric, spec, made_up_statistics(spec))
    chain = CP().stages(spec, rank)

    def fitted() -> tuple[list[float], float]:
        start = CP(iterations=50, starts=1).factorize(weight, spec, rank, [form], 0)
        swept = [start, *(refine(chain, start, weight, form, n, Bounded(weight)) for n in (1, 2, 6))]
        found = relative_sensitivity(component_factors(swept[-1]), float(weight.norm()))
        return [error_of(chain, kernels, weight, form) for kernels in swept], found

    errors, bounded = fitted()
    assert never_rises(errors)
    free(monkeypatch)
    without, unbounded = fitted()
    assert bounded < unbounded / 2
    assert errors[-1] <= 1.25 * without[-1]  # squared
