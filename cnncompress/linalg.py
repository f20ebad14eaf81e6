"""Truncated factorizations of matrices. Tensors in, tensors out, float64 inside."""

from __future__ import annotations

import torch
from torch import Tensor

from cnncompress.errors import CompressError

# Above this smaller side, and below this share of it, a block Krylov iteration replaces the full eigendecomposition.
KRYLOV_MIN_SIDE = 1024
KRYLOV_MAX_SHARE = 0.05


def check_finite(weight: Tensor, where: str) -> None:
    """Raise CompressError if a weight holds NaN or infinity, which no factorization survives."""
    if not torch.isfinite(weight).all():
        raise CompressError(f"{where}: the weight holds NaN or infinite values; compress a network with finite weights")


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best rank-`rank` approximation `U · diag(S) · Vh` of a matrix in the Frobenius norm (Eckart–Young).

    Returns U [m, rank], S [rank] descending, Vh [rank, n] in float64. The singular vectors of the smaller side come
    from an eigendecomposition of its Gram matrix and the other side by projection, so that the product is an
    orthogonal projection of the matrix: at full rank it is the matrix to rounding error. For a large matrix and a
    small rank a block Krylov iteration finds the same subspace without the Gram matrix.
    """
    if matrix.shape[0] > matrix.shape[1]:
        U, S, Vh = truncated_svd(matrix.mT, rank)
        return Vh.mT, S, U.mT
    if not 1 <= rank <= matrix.shape[0]:
        raise ValueError(f"rank {rank} is not in 1..{matrix.shape[0]} for a {tuple(matrix.shape)} matrix")
    if matrix.shape[0] > KRYLOV_MIN_SIDE and rank <= KRYLOV_MAX_SHARE * matrix.shape[0]:
        U = krylov_subspace(matrix, rank)
        return _normalise_rows(U, (U.mT.to(matrix.dtype) @ matrix).double())
    matrix = matrix.double()
    U = leading_eigenvectors(gram(matrix), rank)
    return _normalise_rows(U, U.mT @ matrix)


def _normalise_rows(U: Tensor, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`U · projected` with the row norms of `projected` taken out as singular values, in descending order."""
    S = torch.linalg.vector_norm(projected, dim=1)
    S, order = torch.sort(S, descending=True)
    Vh = projected[order] / S.clamp_min(torch.finfo(S.dtype).tiny).unsqueeze(1)
    return U[:, order], S, Vh


def gram(matrix: Tensor) -> Tensor:
    """`A · Aᵀ` in float64, [m, m]."""
    matrix = matrix.double()
    return matrix @ matrix.mT


def leading_eigenvectors(moment: Tensor, rank: int) -> Tensor:
    """Eigenvectors [m, rank] of the largest eigenvalues of a symmetric matrix, largest first."""
    return torch.linalg.eigh(moment)[1][:, -rank:].flip(1)


def krylov_subspace(matrix: Tensor, rank: int, tolerance: float = 1e-6, max_blocks: int = 40, seed: int = 0) -> Tensor:
    """Orthonormal U [m, rank] close to the leading left singular vectors of a matrix [m, n] with m ≤ n.

    Block Krylov iteration with full reorthogonalisation (Musco and Musco 2015, Algorithm 2), stopped when a further
    block raises the captured energy ‖UᵀA‖² by less than `tolerance` of itself. The passes over the matrix run in its
    own precision, the projected problem in float64.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    block = rank + 8
    start = torch.randn(matrix.shape[0], block, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(start.to(matrix.device))[0]
    rows = matrix.mT @ basis.to(matrix.dtype)
    projected, energy = gram(rows.mT), 0.0
    for _ in range(max_blocks):
        new = (matrix @ rows[:, -block:]).double()
        for _ in range(2):  # twice, so that what is left of an exhausted matrix is orthogonal to the basis too
            new = torch.linalg.qr(new - basis @ (basis.mT @ new))[0]
        new_rows = matrix.mT @ new.to(matrix.dtype)
        cross, corner = (rows.mT @ new_rows).double(), gram(new_rows.mT)
        projected = torch.cat([torch.cat([projected, cross], dim=1), torch.cat([cross.mT, corner], dim=1)])
        basis, rows = torch.cat([basis, new], dim=1), torch.cat([rows, new_rows], dim=1)
        values, vectors = torch.linalg.eigh(projected)
        previous, energy = energy, float(values[-rank:].sum())
        if energy - previous <= tolerance * energy or basis.shape[1] + block > matrix.shape[0]:
            break
    return basis @ vectors[:, -rank:].flip(1)


def singular_values(matrix: Tensor) -> Tensor:
    """All singular values of a matrix, descending, from the Gram matrix of its smaller side (float64)."""
    short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    return torch.linalg.eigvalsh(gram(short)).clamp_min(0).sqrt().flip(0)
