"""Truncated factorizations of matrices. Tensors in, tensors out, float64 inside."""

from __future__ import annotations

from collections.abc import Callable

import scipy.linalg
import torch
from jaxtyping import Float, Float64
from threadpoolctl import threadpool_limits
from torch import Tensor

from cnncompress.errors import CompressError

# Above this smaller side, and below this share of it, a block Krylov iteration replaces the full eigendecomposition.
KRYLOV_MIN_SIDE = 1024
KRYLOV_MAX_SHARE = 0.05


def check_finite(weight: Float[Tensor, " ..."], where: str) -> None:
    """Raise CompressError if a weight holds NaN or infinity, which no factorization survives."""
    if not torch.isfinite(weight).all():
        raise CompressError(f"{where}: the weight holds NaN or infinite values; compress a network with finite weights")


def truncated_svd(
    matrix: Float[Tensor, "m n"], rank: int
) -> tuple[Float64[Tensor, "m {rank}"], Float64[Tensor, " {rank}"], Float64[Tensor, "{rank} n"]]:
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
    if use_krylov(matrix.shape[0], rank):
        U = krylov_subspace(lambda rows: matrix @ (matrix.mT @ rows.to(matrix)), matrix.shape[0], rank)
        return _normalise_rows(U, (U.mT.to(matrix.dtype) @ matrix).double())
    matrix = matrix.double()
    U = leading_eigenvectors(gram(matrix), rank)
    return _normalise_rows(U, U.mT @ matrix)


def _normalise_rows(
    U: Float64[Tensor, "m k"], projected: Float64[Tensor, "k n"]
) -> tuple[Float64[Tensor, "m k"], Float64[Tensor, " k"], Float64[Tensor, "k n"]]:
    """`U · projected` with the row norms of `projected` taken out as singular values, in descending order."""
    S = torch.linalg.vector_norm(projected, dim=1)
    S, order = torch.sort(S, descending=True)
    Vh = projected[order] / S.clamp_min(torch.finfo(S.dtype).tiny).unsqueeze(1)
    return U[:, order], S, Vh


def gram(matrix: Float[Tensor, "m n"]) -> Float64[Tensor, "m m"]:
    """`A · Aᵀ` in float64, [m, m]."""
    matrix = matrix.double()
    return matrix @ matrix.mT


def leading_eigenvectors(moment: Float[Tensor, "m m"], rank: int) -> Float[Tensor, "m {rank}"]:
    """Eigenvectors [m, rank] of the largest eigenvalues of a symmetric matrix, largest first, in its precision."""
    if use_krylov(len(moment), rank):
        return krylov_subspace(lambda rows: moment @ rows.to(moment), len(moment), rank).to(moment.dtype)
    side = len(moment)
    if side > KRYLOV_MIN_SIDE and rank <= side // 2 and moment.device.type == "cpu":
        # A part of the vectors on one thread takes less time than all of them on two, which mostly wait for memory.
        with threadpool_limits(1, user_api="blas"):
            vectors = scipy.linalg.eigh(moment.numpy(), subset_by_index=[side - rank, side - 1], check_finite=False)[1]
        return torch.from_numpy(vectors).flip(1)
    return torch.linalg.eigh(moment)[1][:, -rank:].flip(1)


def use_krylov(side: int, rank: int) -> bool:
    """Whether a Krylov iteration is worth it for `rank` leading vectors of a symmetric matrix of `side` rows."""
    return side > KRYLOV_MIN_SIDE and rank <= KRYLOV_MAX_SHARE * side


def krylov_subspace(
    apply: Callable[[Float64[Tensor, "m b"]], Float[Tensor, "m b"]],
    side: int,
    rank: int,
    tolerance: float = 1e-6,
    max_blocks: int = 40,
) -> Float64[Tensor, "{side} {rank}"]:
    """Orthonormal U [m, rank] close to the leading eigenvectors of a symmetric positive semidefinite matrix [m, m].

    Block Krylov iteration with full reorthogonalisation (Musco and Musco 2015, Algorithm 2), stopped when a further
    block raises the captured part of the trace, tr(UᵀMU), by less than `tolerance` of itself. `apply` multiplies the
    matrix with columns [m, b] in a precision of its own; the projected problem is solved in float64.
    """
    generator = torch.Generator(device="cpu").manual_seed(0)
    block = rank + 8
    new = torch.linalg.qr(torch.randn(side, block, generator=generator, dtype=torch.float64))[0]
    image = apply(new).double()
    new = new.to(image.device)
    basis, projected, captured = new, new.mT @ image, 0.0
    for _ in range(max_blocks):
        new = image
        for _ in range(2):  # twice, so that what is left of an exhausted matrix is orthogonal to the basis too
            new = torch.linalg.qr(new - basis @ (basis.mT @ new))[0]
        image = apply(new).double()
        cross, corner = basis.mT @ image, new.mT @ image
        projected = torch.cat([torch.cat([projected, cross], dim=1), torch.cat([cross.mT, corner], dim=1)])
        basis = torch.cat([basis, new], dim=1)
        values, vectors = torch.linalg.eigh((projected + projected.mT) / 2)
        previous, captured = captured, float(values[-rank:].sum())
        if captured - previous <= tolerance * captured or basis.shape[1] + block > side:
            break
    return basis @ vectors[:, -rank:].flip(1)


def singular_values(matrix: Float[Tensor, "m n"]) -> Float64[Tensor, " k"]:
    """All singular values of a matrix, descending, from the Gram matrix of its smaller side, in float64.

    The products of a matrix whose smaller side is above `KRYLOV_MIN_SIDE` are taken in its own precision.
    """
    short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    if len(short) > KRYLOV_MIN_SIDE:
        return torch.linalg.eigvalsh((short @ short.mT).double()).clamp_min(0).sqrt().flip(0)
    return torch.linalg.eigvalsh(gram(short)).clamp_min(0).sqrt().flip(0)


def mean_eigenvalue(matrix: Float[Tensor, "n n"]) -> float:
    """The mean eigenvalue of a positive semidefinite matrix, which is the scale of its entries; 1 where all vanish."""
    return float(matrix.diagonal().mean()) or 1.0


def oas_shrinkage(moment: Float[Tensor, "n n"], count: int, width: int | None = None) -> float:
    """The share of a multiple of the identity to mix into a sample covariance, at least 1e-6.

    Oracle approximating shrinkage (Chen et al. 2010, eq. 23) for `count` samples. `moment` is the covariance [n, n],
    or for samples X [count, n] with n = `width` the matrix X·Xᵀ / count, which has the same trace and norm.
    """
    n = width or len(moment)
    trace = float(moment.diagonal().double().sum())
    energy = float(moment.double().square().sum())
    if trace <= 0 or count < 1:
        return 1.0
    numerator = (1 - 2 / n) * energy + trace**2
    denominator = (count + 1 - 2 / n) * (energy - trace**2 / n)
    return 1.0 if denominator <= 0 else min(1.0, max(1e-6, numerator / denominator))


def solve_psd(matrix: Float[Tensor, "*g k k"], right: Float[Tensor, "*g m k"]) -> Float[Tensor, "*g m k"]:
    """X [m, k] of X · matrix = right, for a symmetric positive semidefinite matrix [k, k] and right [m, k], or many.

    A singular matrix is regularised by 1e-12 of its largest diagonal entry, raised until a Cholesky factor exists.
    """
    if matrix.dim() > 2:
        root, info = torch.linalg.cholesky_ex((matrix + matrix.mT) / 2)
        if not info.any():
            return torch.cholesky_solve(right.mT, root).mT
        return torch.stack([solve_psd(m, r) for m, r in zip(matrix, right, strict=True)])
    if float(matrix.diagonal().max()) <= 0:
        return torch.zeros_like(right)
    return torch.cholesky_solve(right.mT, psd_root((matrix + matrix.mT) / 2, 1e-12)).mT


def psd_root(matrix: Float[Tensor, "n n"], damping: float = 0.0) -> Float[Tensor, "n n"]:
    """Lower triangular L with L·Lᵀ = matrix, for a matrix that is positive semidefinite but for rounding errors.

    Its diagonal is raised by `damping` of its largest entry, and by more where a Cholesky factor needs it. Raises
    CompressError for a matrix that is far from positive semidefinite or not finite.
    """
    level = float(matrix.diagonal().max()) or 1.0
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    for share in (damping, *(10.0**exponent for exponent in range(-11, 1))):
        root, info = torch.linalg.cholesky_ex(matrix + share * level * eye)
        if not info and torch.isfinite(root).all():
            return root
    raise CompressError("a second moment is not finite or not positive semidefinite; collect the statistics again")


def rank_one_scaling(weights: Float[Tensor, "m n"]) -> tuple[Float64[Tensor, " m"], Float64[Tensor, " n"]]:
    """Positive a [m], b [n] with a·bᵀ closest to positive weights [m, n] (Perron vectors)."""
    U, S, Vh = truncated_svd(weights, 1)
    a, b = U[:, 0].abs() * S[0].sqrt(), Vh[0].abs() * S[0].sqrt()
    tiny = torch.finfo(a.dtype).tiny
    return a.clamp_min(max(float(a.max()) * 1e-6, tiny)), b.clamp_min(max(float(b.max()) * 1e-6, tiny))
