"""Truncated factorizations against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from sklearn.covariance import oas

from cnncompress.errors import CompressError
from cnncompress.maths import linalg
from cnncompress.maths.linalg import (
    check_finite,
    krylov_subspace,
    leading_eigenvectors,
    oas_shrinkage,
    psd_root,
    rank_one_scaling,
    singular_values,
    solve_psd,
    truncated_svd,
)
from tests.decompositions.helpers import randn


def with_spectrum(m: int, n: int, values: np.ndarray) -> torch.Tensor:
    """A random matrix with these singular values."""
    U = np.linalg.qr(randn(m, m, seed=1).numpy())[0][:, : len(values)]
    V = np.linalg.qr(randn(n, n, seed=2).numpy())[0][:, : len(values)]
    return torch.from_numpy((U * values) @ V.T)


def orthonormality(U: torch.Tensor) -> float:
    return float((U.mT @ U - torch.eye(U.shape[1], dtype=U.dtype)).abs().max())


@pytest.mark.parametrize(("m", "n"), [(7, 30), (30, 7), (12, 12), (1, 9), (9, 1), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_truncated_svd_against_numpy(m, n, dtype):
    A = randn(m, n, dtype=dtype)
    u, s, vt = np.linalg.svd(A.double().numpy(), full_matrices=False)
    for rank in range(1, min(m, n) + 1):
        U, S, Vh = truncated_svd(A, rank)
        assert (U.shape, S.shape, Vh.shape) == ((m, rank), (rank,), (rank, n))
        assert U.dtype == S.dtype == Vh.dtype == torch.float64
        np.testing.assert_allclose(S.numpy(), s[:rank], rtol=1e-9)
        expected = (u[:, :rank] * s[:rank]) @ vt[:rank]
        np.testing.assert_allclose(((U * S) @ Vh).numpy(), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("rank", [0, 4, -1])
def test_truncated_svd_refuses_a_rank_out_of_range(rank):
    with pytest.raises(ValueError, match="rank"):
        truncated_svd(randn(3, 5), rank)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (1, 5)])
@pytest.mark.parametrize("true_rank", [0, 1])
def test_truncated_svd_of_degenerate_matrices(shape, true_rank):
    A = randn(shape[0], 1) @ randn(1, shape[1], seed=1) * true_rank
    U, S, Vh = truncated_svd(A, min(shape))
    assert all(torch.isfinite(t).all() for t in (U, S, Vh))
    torch.testing.assert_close((U * S) @ Vh, A, rtol=1e-9, atol=1e-9)
    assert (S[true_rank:] < 1e-6).all()


def test_small_singular_values_survive_at_full_rank():
    A = with_spectrum(8, 8, np.logspace(0, -12, 8))
    U, S, Vh = truncated_svd(A, 8)
    torch.testing.assert_close((U * S) @ Vh, A, rtol=0, atol=1e-14)


SPECTRA = {
    "decaying": np.exp(-np.arange(200) / 5.0),
    "power law": 1 / np.arange(1, 201),
    "flat": np.linspace(1.0, 0.9, 200),
    "step": np.r_[np.ones(10), np.full(190, 1e-3)],
    "rank 3": np.r_[1.0, 0.5, 0.1],
    "rank 30": np.ones(30),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_krylov_path_against_numpy(monkeypatch, name, transposed, dtype):
    monkeypatch.setattr(linalg, "KRYLOV_MIN_SIDE", 100)
    A = with_spectrum(200, 320, SPECTRA[name]).to(dtype)
    A = A.mT if transposed else A
    rank = 10
    s = np.linalg.svd(A.double().numpy(), compute_uv=False)
    U, S, Vh = truncated_svd(A, rank)
    one, other = (Vh.mT, U) if transposed else (U, Vh.mT)
    assert orthonormality(one) < 1e-5
    assert all(torch.isfinite(t).all() for t in (U, S, other))
    error, best = float(((U * S) @ Vh - A.double()).square().sum()), float((s[rank:] ** 2).sum())
    energy = float((s**2).sum())
    assert error <= best + 1e-5 * energy
    assert error >= best - 1e-9 * energy


@pytest.mark.parametrize("matrix", ["zero", "one column", "identity"])
def test_krylov_of_degenerate_matrices(matrix):
    A = {"zero": torch.zeros(60, 80), "one column": torch.zeros(60, 80), "identity": torch.eye(60, 80)}[matrix].double()
    if matrix == "one column":
        A[:, 3] = randn(60)
    U = krylov_subspace(lambda Q: A @ (A.mT @ Q), len(A), 4)
    assert orthonormality(U) < 1e-10
    captured = float((U.mT @ A).square().sum())
    best = float((np.linalg.svd(A.numpy(), compute_uv=False)[:4] ** 2).sum())
    assert captured == pytest.approx(best, rel=1e-6, abs=1e-12)


def test_krylov_is_deterministic():
    A = randn(60, 80)
    assert torch.equal(*(krylov_subspace(lambda Q: A @ (A.mT @ Q), len(A), 3) for _ in range(2)))


def test_singular_values_and_eigenvectors_against_numpy():
    A = randn(6, 10)
    np.testing.assert_allclose(singular_values(A).numpy(), np.linalg.svd(A.numpy(), compute_uv=False), rtol=1e-9)
    np.testing.assert_allclose(singular_values(A.mT).numpy(), singular_values(A).numpy(), rtol=1e-9)
    moment = (A @ A.mT).numpy()
    U = leading_eigenvectors(torch.from_numpy(moment), 2).numpy()
    np.testing.assert_allclose(U.T @ moment @ U, np.diag(np.linalg.eigvalsh(moment)[::-1][:2]), atol=1e-9)


@pytest.mark.parametrize("share", [1.0, 0.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_some_eigenvectors_of_a_large_matrix_against_numpy(monkeypatch, share, dtype):
    monkeypatch.setattr(linalg, "KRYLOV_MIN_SIDE", 30)
    A = randn(40, 5) * share  # eigenvalues of zero are among the twelve
    moment = (A @ A.mT).to(dtype)
    U = leading_eigenvectors(moment, 12)
    assert U.dtype == dtype
    assert orthonormality(U) < 1e-5
    captured = (U.mT @ moment @ U).diagonal().double().numpy()
    best = np.linalg.eigvalsh(moment.double().numpy())[::-1][:12]
    np.testing.assert_allclose(captured, best, atol=1e-5 * max(best[0], 1))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_check_finite(bad):
    weight = randn(3, 3)
    check_finite(weight, "layer")
    weight[1, 1] = bad
    with pytest.raises(CompressError, match="features"):
        check_finite(weight, "features.0")


@pytest.mark.parametrize(("count", "n"), [(3, 10), (10, 10), (40, 10), (500, 10), (50, 400), (2000, 400)])
def test_oas_shrinkage(count, n):
    """Equation 23 of Chen et al. 2010; scikit-learn leaves out 2/n, which does not matter for large n."""
    X = (randn(count, n) * torch.exp(-torch.linspace(0, 2, n))).numpy()
    S = X.T @ X / count
    trace, energy = np.trace(S), np.trace(S @ S)
    found = oas_shrinkage(torch.from_numpy(S), count)
    expected = ((1 - 2 / n) * energy + trace**2) / ((count + 1 - 2 / n) * (energy - trace**2 / n))
    assert found == pytest.approx(min(1.0, expected), rel=1e-9)
    if n >= 400:
        assert found == pytest.approx(oas(X, assume_centered=True)[1], rel=1e-2)
    assert oas_shrinkage(torch.from_numpy(X @ X.T / count), count, n) == pytest.approx(found, rel=1e-9)


def test_oas_shrinkage_of_degenerate_moments():
    assert oas_shrinkage(torch.zeros(4, 4), 100) == 1
    assert oas_shrinkage(torch.eye(4), 100) == 1
    assert oas_shrinkage(torch.ones(4, 4), 0) == 1
    assert oas_shrinkage(torch.ones(4, 4), 10**12) == 1e-6


@pytest.mark.parametrize("rank", [0, 1, 5, 8])
def test_solve_psd_is_least_squares_even_where_singular(rank):
    B, target = randn(8, rank, seed=1) @ randn(rank, 30, seed=2), randn(5, 30, seed=3)
    X = solve_psd(B @ B.mT, target @ B.mT)
    assert torch.isfinite(X).all()
    expected = np.linalg.lstsq(B.mT.numpy(), target.mT.numpy(), rcond=1e-10)[0].T
    np.testing.assert_allclose((X @ B).numpy(), expected @ B.numpy(), atol=1e-6)


def test_solve_psd_of_a_regular_matrix_is_exact():
    M, right = with_spectrum(6, 6, np.ones(6)) + 3 * torch.eye(6, dtype=torch.float64), randn(2, 6)
    M = M @ M.mT
    np.testing.assert_allclose(solve_psd(M, right).numpy(), np.linalg.solve(M.numpy(), right.numpy().T).T, rtol=1e-9)


def test_solve_psd_of_many_matrices_is_that_of_each():
    roots, right = randn(4, 6, 6), randn(4, 3, 6, seed=1)
    for damaged in (False, True):
        moments = roots @ roots.mT
        if damaged:
            moments[2] = 0
        found = solve_psd(moments, right)
        for m, r, x in zip(moments, right, found, strict=True):
            torch.testing.assert_close(x, solve_psd(m, r))


@pytest.mark.parametrize("rank", [0, 1, 3, 6])
def test_psd_root(rank):
    A = randn(6, rank) @ randn(rank, 6, seed=1)
    M = A @ A.mT
    L = psd_root(M)
    assert torch.equal(L, L.tril())
    assert (L.diagonal() > 0).all()
    torch.testing.assert_close(L @ L.mT, M, rtol=0, atol=1e-10 * max(1.0, float(M.abs().max())))


def test_psd_root_survives_rounding_to_float32():
    u = randn(200, 1, dtype=torch.float32)
    M = (u @ u.mT).double()
    assert float(torch.linalg.eigvalsh(M)[0]) < 0
    L = psd_root(M)
    torch.testing.assert_close(L @ L.mT, M, rtol=0, atol=1e-5 * float(M.max()))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_psd_root_of_anything_else_is_one_line(bad):
    M = torch.eye(3, dtype=torch.float64)
    M[1, 1] = bad
    if bad < 0:
        M[1, 1] *= 100
    with pytest.raises(CompressError, match="not positive semidefinite") as caught:
        psd_root(M)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (1, 4), (3, 1)])
def test_rank_one_scaling_is_positive_and_closest(shape):
    weights = randn(*shape).exp()
    a, b = rank_one_scaling(weights)
    assert (a > 0).all()
    assert (b > 0).all()
    rest = np.linalg.svd(weights.numpy(), compute_uv=False)[1:]
    assert float((weights - a[:, None] * b).square().sum()) == pytest.approx(float(np.sum(rest**2)), abs=1e-9)


def test_rank_one_scaling_is_exact_for_a_product_and_positive_beside_zeros():
    a, b = randn(4).exp(), randn(7, seed=1).exp()
    one, two = rank_one_scaling(a[:, None] * b)
    torch.testing.assert_close(one[:, None] * two, a[:, None] * b)
    for weights in (
        torch.zeros(3, 4).double(),
        torch.eye(3).double(),
        torch.zeros(3, 4).double().index_fill(0, torch.tensor([1]), 2.0),
    ):
        assert all(bool((v > 0).all()) and bool(torch.isfinite(1 / v).all()) for v in rank_one_scaling(weights))


def test_shapes_are_checked_here():
    with pytest.raises(TypeCheckError, match="right"):
        solve_psd(torch.eye(3), torch.ones(2, 4))
