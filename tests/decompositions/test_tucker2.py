"""Tucker-2 by two SVDs and by orthogonal iteration."""

from __future__ import annotations

import numpy as np
import pytest
import tensorly as tl
import torch
from tensorly.decomposition import partial_tucker

from cnncompress.chains.compose import compose
from cnncompress.chains.spec import ConvSpec
from cnncompress.decompositions import get_method
from cnncompress.errors import UsageError
from tests.decompositions.helpers import randn, relative

SHAPES = [((12, 9, 3, 3), (4, 5)), ((6, 10, 1, 5), (10, 2)), ((20, 1, 3, 3), (1, 9)), ((16, 4, 2, 2), (1, 12))]


def error(weight: torch.Tensor, rank: tuple[int, int], **options) -> float:
    F, C, kh, kw = weight.shape
    spec, method = ConvSpec(C, F, (kh, kw)), get_method("tucker2", **options)
    return relative(compose(method.stages(spec, rank), method.factorize(weight, spec, rank)), weight)


@pytest.mark.parametrize(("shape", "rank"), SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_hooi_is_never_worse_than_hosvd(shape, rank, seed):
    weight = randn(*shape, seed=seed)
    assert error(weight, rank, algorithm="hooi") <= error(weight, rank) + 1e-12


def test_hosvd_is_two_successive_svds():
    """Denton et al. §3.2.2 with numpy: project onto K1 input directions, then onto K2 output directions of the rest."""
    weight, (K1, K2) = randn(12, 9, 3, 3), (4, 5)
    W = weight.numpy()
    U = np.linalg.svd(W.transpose(1, 0, 2, 3).reshape(9, -1), full_matrices=False)[0][:, :K1]
    rest = np.einsum("fcij,ck,dk->fdij", W, U, U).reshape(12, -1)
    u, s, vt = np.linalg.svd(rest, full_matrices=False)
    expected = torch.from_numpy(((u[:, :K2] * s[:K2]) @ vt[:K2]).reshape(W.shape))
    assert error(weight, (K1, K2)) == pytest.approx(relative(expected, weight), rel=1e-9)


def test_hooi_is_as_good_as_tensorly_from_its_own_start():
    weight = randn(12, 9, 3, 3)
    (core, factors), _ = partial_tucker(weight.numpy(), rank=[5, 4], modes=[0, 1], n_iter_max=50, tol=1e-9)
    theirs = tl.tenalg.multi_mode_dot(core, factors, modes=[0, 1])
    ours = error(weight, (4, 5), algorithm="hooi", sweeps=50)
    assert ours == pytest.approx(relative(torch.from_numpy(theirs), weight), rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"algorithm": "hoi"}, "no algorithm 'hoi'.*did you mean 'hooi'"), ({"sweeps": 0}, "at least 1")],
)
def test_options_out_of_range(options, message):
    with pytest.raises(UsageError, match=message):
        get_method("tucker2", **options)


def test_refuses_what_has_no_spatial_extent():
    method = get_method("tucker2")
    assert "channel-svd" in method.refuse(ConvSpec(4, 4))
    assert "svd" in method.refuse(ConvSpec(4, 4, linear=True))
