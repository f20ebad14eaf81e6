"""CP: the fit, the exact construction, its memory."""

from __future__ import annotations

import subprocess
import sys

import pytest
import tensorly as tl
import torch
from tensorly.decomposition import parafac

from cnncompress.decompositions import compose, get_method
from cnncompress.decompositions.cp import balanced, exact_factors, fit_factors
from cnncompress.errors import UsageError
from cnncompress.spec import ConvSpec
from tests.decompositions.helpers import randn, relative


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
    assert relative(total(fit_factors(tensor, 1, 3)), tensor) < 1e-12


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
    assert errors[1] <= errors[0] + 1e-12
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
import resource, torch
from cnncompress.decompositions import get_method
from cnncompress.spec import ConvSpec
torch.set_num_threads(2)
spec, method = ConvSpec(512, 512, (3, 3)), get_method("cp", iterations=1)
weight = torch.randn(512, 512, 3, 3, generator=torch.Generator().manual_seed(0))
for rank in (8, 1152):
    kernels = method.factorize(weight, spec, (rank,))
full = method.factorize(weight, spec, method.full_rank(spec))
assert all(torch.isfinite(k).all() for k in kernels)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_of_a_wide_layer():
    """512×512×3×3 at rank 8, at a quarter of its full rank and at full rank: the whole process stays under 2 GB."""
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True, timeout=300)
    assert int(done.stdout) * 1024 < 2e9


def test_the_fit_is_the_chain():
    method, spec, weight = get_method("cp"), ConvSpec(6, 8, (3, 3)), randn(8, 6, 3, 3)
    composed = compose(method.stages(spec, (5,)), method.factorize(weight, spec, (5,), refine=0))
    torch.testing.assert_close(composed.flatten(2), total(fit_factors(weight.flatten(2), 5, 100)))
