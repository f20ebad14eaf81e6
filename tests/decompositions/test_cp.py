"""CP: the fit, the exact construction, its memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tensorly as tl
import torch
from tensorly.decomposition import parafac

from cnncompress.chains.compose import compose, extract_groups
from cnncompress.chains.spec import ConvSpec
from cnncompress.decompositions import cp, get_method
from cnncompress.decompositions.cp import CP, exact_factors, fit_factors
from cnncompress.decompositions.sensitivity import balanced
from cnncompress.errors import UsageError
from cnncompress.metrics import layer_metrics, squared_error
from tests.decompositions.helpers import made_up_statistics, randn, relative
from tests.orders import never_rises


def total(factors) -> torch.Tensor:
    return torch.einsum("fk,ck,pk->fcp", *factors)


@pytest.mark.parametrize("shape", [(5, 4, 9), (12, 2, 3), (2, 12, 9), (2, 3, 25), (4, 4, 4), (1, 6, 9)])
@pytest.mark.parametrize("extra", [0, 3])
def test_exact_construction(shape, extra):
    tensor = randn(*shape)
    rank = shape[0] * shape[1] * shape[2] // max(shape) + extra
    factors = exact_factors(tensor, rank)
    assert [f.shape for f in factors] == [(n, rank) for n in shape]
    assert torch.equal(total(factors), tensor)
    torch.testing.assert_close(total(balanced(factors)), tensor, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 5, 20])
def test_fit_is_as_good_as_tensorly(rank):
    """Local optima differ: within 2 % of the best of three random starts, for weights without structure."""
    tensor = randn(16, 12, 9)
    theirs = [
        tl.cp_to_tensor(parafac(tensor.numpy(), rank, n_iter_max=200, init="random", random_state=seed, tol=1e-7))
        for seed in range(3)
    ]
    best = min(relative(torch.from_numpy(t), tensor) for t in theirs)
    assert relative(total(fit_factors(tensor, rank, 200)), tensor) <= best * 1.02


def test_rank_one_of_a_rank_one_tensor_is_exact():
    tensor = torch.einsum("f,c,p->fcp", randn(7), randn(5, seed=1), randn(9, seed=2))
    assert relative(total(fit_factors(tensor, 1, 5)), tensor) < 1e-12


def test_more_components_than_the_tensor_has_stay_bounded():
    """Collinear components must not run off to infinity against each other."""
    tensor = torch.einsum("f,c,p->fcp", randn(16), randn(16, seed=1), randn(9, seed=2))
    factors = balanced(fit_factors(tensor, 12, 100))
    assert relative(total(factors), tensor) < 1e-6
    assert max(float(f.abs().max()) for f in factors) < 10 * float(tensor.abs().max())


@pytest.mark.parametrize("iterations", [1, 2, 50])
def test_never_worse_than_zero_and_better_with_more_iterations(iterations):
    tensor = randn(10, 8, 9, seed=4)
    errors = [relative(total(fit_factors(tensor, 6, n)), tensor) for n in (iterations, iterations + 1)]
    assert never_rises(errors)
    assert errors[0] <= 1


def test_components_carry_equal_norms():
    method, spec = get_method("cp"), ConvSpec(6, 8, (3, 3))
    first, middle, last = method.factorize(randn(8, 6, 3, 3), spec, (5,), refine=0)
    norms = [first.flatten(1).norm(dim=1), middle.flatten(1).norm(dim=1), last[:, :, 0, 0].norm(dim=0)]
    torch.testing.assert_close(norms[0], norms[1])
    torch.testing.assert_close(norms[0], norms[2])


def test_iterations_out_of_range():
    with pytest.raises(UsageError, match="at least 1"):
        get_method("cp", iterations=0)


def test_refuses_what_has_no_spatial_extent():
    method = get_method("cp")
    assert "channel-svd" in method.refuse(ConvSpec(4, 4))
    assert "svd" in method.refuse(ConvSpec(4, 4, linear=True))
    assert method.refuse(ConvSpec(4, 4, (1, 3))) is None


CHILD = """
import torch
from cnncompress.decompositions import get_method
from cnncompress.chains.spec import ConvSpec
torch.set_num_threads(2)
spec, method = ConvSpec(512, 512, (3, 3)), get_method("cp", iterations=1)
weight = torch.randn(512, 512, 3, 3, generator=torch.Generator().manual_seed(0))
for rank in (8, 1152):
    kernels = method.factorize(weight, spec, (rank,))
full = method.factorize(weight, spec, method.full_rank(spec))
assert all(torch.isfinite(k).all() for k in kernels)
# not getrusage, in which the peak of the process that started this one counts too
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell the peak of a process")
def test_memory_of_a_wide_layer():
    """512×512×3×3 at rank 8, at a quarter of its full rank and at full rank: the whole process stays under 2 GB."""
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True, timeout=300)
    assert int(done.stdout) * 1024 < 2e9


def test_the_fit_is_the_chain():
    method, spec, weight = get_method("cp"), ConvSpec(6, 8, (3, 3)), randn(8, 6, 3, 3)
    composed = compose(method.stages(spec, (5,)), method.factorize(weight, spec, (5,), refine=0))
    torch.testing.assert_close(composed.flatten(2), total(fit_factors(weight.flatten(2), 5, 100)))


def test_no_sweep_raises_the_error():
    tensor = randn(9, 8, 9)
    errors = [relative(total(fit_factors(tensor, 15, n)), tensor) for n in range(1, 25)]
    assert never_rises(errors)
    assert errors[-1] < 0.7 * errors[0]


def test_momentum_needs_fewer_sweeps_than_plain_least_squares():
    """Against tensorly's alternating least squares, three random starts of 60 sweeps each."""
    tensor, sweeps = randn(16, 16, 9), 60
    plain = [
        tl.cp_to_tensor(parafac(tensor.numpy(), 28, n_iter_max=sweeps, init="random", random_state=seed, tol=0))
        for seed in range(3)
    ]
    ours = [relative(total(fit_factors(tensor, 28, sweeps, seed)), tensor) for seed in range(3)]
    assert sum(ours) < sum(relative(torch.from_numpy(t), tensor) for t in plain)


@pytest.mark.parametrize("metric", ["data-covariance", "kronecker", "mahalanobis"])
def test_the_metric_counts_from_the_start(metric):
    """The fit itself, before any refit, has a lower error in the metric than the one that does not know it."""
    spec = ConvSpec(12, 16, (3, 3))
    weight, metrics = randn(*spec.weight_shape), layer_metrics(metric, spec, made_up_statistics(spec, decay=4.0))
    aware, plain = (
        squared_error(metrics, weight - compose(CP().stages(spec, (20,)), CP().factorize(weight, spec, (20,), m, 0)))
        for m in (metrics, None)
    )
    assert aware < plain


def test_more_starts_are_never_worse():
    spec = ConvSpec(8, 8, (3, 3))
    weight, metrics = randn(*spec.weight_shape), layer_metrics("kronecker", spec, made_up_statistics(spec))
    errors = [float(CP(starts=n).errors(weight, spec, [(12,)], metrics)) for n in (1, 2, 4)]
    assert never_rises(errors)


def test_errors_are_read_off_a_falling_curve():
    spec = ConvSpec(16, 16, (3, 3))
    weight = randn(*spec.weight_shape)
    method, ranks = CP().quick(), [(k,) for k in range(1, 57)]  # 56 ranks have fewer MACs than the layer
    curve = method.errors(weight, spec, ranks)
    assert never_rises(curve)
    for k in (3, 11, 17, 29, 40):
        own = (weight - compose(method.stages(spec, (k,)), method.factorize(weight, spec, (k,)))).square().sum()
        assert float(curve[k - 1]) == pytest.approx(float(own), rel=0.25)


def test_a_quick_fit_is_not_longer_than_what_was_asked_for():
    assert CP().quick().settings == {"iterations": 30, "starts": 1, "seed": 0}
    assert CP(iterations=7, seed=3).quick().settings == {"iterations": 7, "starts": 1, "seed": 3}


def test_wide_weights_lose_nothing_to_single_precision(monkeypatch):
    tensor = randn(24, 24, 9)
    double = relative(total(fit_factors(tensor, 40, 20)), tensor)
    monkeypatch.setattr(cp, "WIDE_ENTRIES", 1)
    assert relative(total(fit_factors(tensor, 40, 20)), tensor) == pytest.approx(double, rel=1e-2)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_start_is_refined_instead_of_a_new_fit(groups):
    spec = ConvSpec(8 * groups, 8 * groups, (3, 3), groups=groups)
    weight, metrics = randn(*spec.weight_shape), layer_metrics("kronecker", spec, made_up_statistics(spec))

    def error(kernels) -> float:
        dense = extract_groups(compose(CP().stages(spec, (12,)), kernels), groups)
        return squared_error(metrics, weight - dense)

    start = CP(iterations=2, starts=1).factorize(weight, spec, (12,), metrics, 0)
    same = CP().factorize(weight, spec, (12,), metrics, 0, start)
    assert all(torch.equal(a, b) for a, b in zip(start, same, strict=True))
    errors = [error(CP().factorize(weight, spec, (12,), metrics, sweeps, start)) for sweeps in (0, 1, 4)]
    assert errors[2] < errors[1] < errors[0]


def test_the_seed_moves_all_random_starts_and_nothing_else():
    """Above the mode sizes, columns start at random: seeds have no start in common, and each gives the same fit again.

    Below them no column is random.
    """
    weight, spec = randn(6, 6, 3, 3), ConvSpec(6, 6, (3, 3))
    wide, narrow = (
        [CP(iterations=3, starts=2, seed=seed).factorize(weight, spec, (rank,), refine=0)[0] for seed in (0, 0, 1)]
        for rank in (12, 5)
    )
    assert torch.equal(wide[0], wide[1])
    assert not torch.allclose(wide[0], wide[2], atol=1e-3)
    assert torch.equal(narrow[0], narrow[2])
    CP(seed=2**63 - 1, starts=3, iterations=1).factorize(weight, spec, (12,))  # the largest seed
