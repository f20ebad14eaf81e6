"""Truncated factorizations against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cnncompress import linalg
from cnncompress.errors import CompressError
from cnncompress.linalg import check_finite, krylov_subspace, leading_eigenvectors, singular_values, truncated_svd
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
    U = krylov_subspace(A, 4)
    assert orthonormality(U) < 1e-10
    captured = float((U.mT @ A).square().sum())
    best = float((np.linalg.svd(A.numpy(), compute_uv=False)[:4] ** 2).sum())
    assert captured == pytest.approx(best, rel=1e-6, abs=1e-12)


def test_krylov_is_deterministic():
    A = randn(60, 80)
    assert torch.equal(krylov_subspace(A, 3), krylov_subspace(A, 3))


def test_singular_values_and_eigenvectors_against_numpy():
    A = randn(6, 10)
    np.testing.assert_allclose(singular_values(A).numpy(), np.linalg.svd(A.numpy(), compute_uv=False), rtol=1e-9)
    np.testing.assert_allclose(singular_values(A.mT).numpy(), singular_values(A).numpy(), rtol=1e-9)
    moment = (A @ A.mT).numpy()
    U = leading_eigenvectors(torch.from_numpy(moment), 2).numpy()
    np.testing.assert_allclose(U.T @ moment @ U, np.diag(np.linalg.eigvalsh(moment)[::-1][:2]), atol=1e-9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_check_finite(bad):
    weight = randn(3, 3)
    check_finite(weight, "layer")
    weight[1, 1] = bad
    with pytest.raises(CompressError, match="features"):
        check_finite(weight, "features.0")
