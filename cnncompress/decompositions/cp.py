"""CP: a 1×1 convolution to K channels, one spatial filter a channel, a 1×1 back to F."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cnncompress.decompositions.base import Decomposition, refuse_matrix, register
from cnncompress.errors import UsageError
from cnncompress.linalg import gram, leading_eigenvectors
from cnncompress.metrics import Metric
from cnncompress.spec import Chain, ConvSpec, Rank

Factors = tuple[Tensor, Tensor, Tensor]

# Each update is damped by this share of its normal matrix, which keeps it solvable where components are collinear.
DAMPING = 1e-9
# Stop when a sweep lowers the error by less than this share of it.
TOLERANCE = 1e-5


@register
class CP(Decomposition):
    """1×1 C→K, depthwise kh×kw, 1×1 K→F: a sum of K outer products of an input, a spatial and an output vector.

    Fitted by at most `iterations` sweeps of alternating least squares; the result is a local optimum, so that a
    higher rank is not sure to have a lower error. At full rank the construction is exact.
    """

    name = "cp"
    source = "Denton et al. 2014 §3.2.2 (outer products); Lebedev et al. 2015"
    options = {"iterations": 100}  # noqa: RUF012

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if self.settings["iterations"] < 1:
            raise UsageError(f"option iterations of method cp is at least 1, not {self.settings['iterations']}")

    def group_refuse(self, spec: ConvSpec) -> str | None:
        """A 1×1 kernel has no spatial vectors."""
        return refuse_matrix(spec)

    def group_full_rank(self, spec: ConvSpec) -> Rank:
        """min(C·kh·kw, F·kh·kw, C·F)."""
        F, C, kh, kw = spec.weight_shape
        return (min(C * kh * kw, F * kh * kw, C * F),)

    def group_stages(self, spec: ConvSpec, rank: Rank) -> Chain:
        """The depthwise stage keeps the layer's geometry."""
        K = rank[0]
        depthwise = spec.replace(in_channels=K, out_channels=K, groups=K, bias=False)
        return ConvSpec(spec.in_channels, K), depthwise, ConvSpec(K, spec.out_channels, bias=spec.bias)

    def group_factorize(self, weight: Tensor, spec: ConvSpec, rank: Rank, metric: Metric) -> list[Tensor]:
        """The three factors, every component's norm spread evenly over them."""
        K, full = rank[0], self.group_full_rank(spec)[0]
        tensor = weight.flatten(2)
        factors = exact_factors(tensor, K) if full <= K else fit_factors(tensor, K, self.settings["iterations"])
        output, inputs, taps = balanced(factors)
        kh, kw = spec.kernel_size
        return [inputs.mT[:, :, None, None], taps.mT.reshape(K, 1, kh, kw), output[:, :, None, None]]


def exact_factors(tensor: Tensor, rank: int) -> Factors:
    """Factors of the tensor itself: unit vectors on the two shorter modes, its fibres on the longest."""
    longest = max(range(3), key=lambda mode: tensor.shape[mode])
    i, j = (mode for mode in range(3) if mode != longest)
    n, m = tensor.shape[i], tensor.shape[j]
    eye = torch.eye(max(n, m), dtype=tensor.dtype, device=tensor.device)
    parts = {
        i: eye[:n, :n].repeat_interleave(m, dim=1),
        j: eye[:m, :m].repeat(1, n),
        longest: tensor.movedim(longest, 0).flatten(1),
    }
    pad = (0, rank - n * m)
    A, B, D = (torch.nn.functional.pad(parts[mode], pad) for mode in range(3))
    return A, B, D


def fit_factors(tensor: Tensor, rank: int, iterations: int) -> Factors:
    """Alternating least squares for `tensor` [F, C, P] ≈ Σ_k A[:, k] ∘ B[:, k] ∘ D[:, k].

    Written as products with one factor at a time: the largest intermediate has max(F, C)·P·K entries, where a
    Khatri-Rao product of both channel modes would have F·C·K (gigabytes at K in the hundreds). The output factor
    starts at zero, so that no result is worse than zero, and no update raises the error.
    """
    F, C, P = tensor.shape
    scale = float(torch.linalg.vector_norm(tensor)) or 1.0
    tensor = tensor / scale
    by_input = tensor.transpose(0, 1).reshape(C, F * P)
    generator = torch.Generator().manual_seed(0)
    A = tensor.new_zeros(F, rank)
    B = _start(by_input, rank, generator)
    D = _start(tensor.permute(2, 0, 1).flatten(1), rank, generator)
    error = 1.0
    for _ in range(iterations):
        inputs_done = (by_input.mT @ B).reshape(F, P, rank)
        A = _update(A, torch.einsum("fpk,pk->fk", inputs_done, D), B, D)
        D = _update(D, torch.einsum("fpk,fk->pk", inputs_done, A), A, B)
        outputs_done = (tensor.reshape(F, C * P).mT @ A).reshape(C, P, rank)
        product = torch.einsum("cpk,pk->ck", outputs_done, D)
        B = _update(B, product, A, D)
        fitted = ((A.mT @ A) * (B.mT @ B) * (D.mT @ D)).sum()
        previous, error = error, max(0.0, float(1 - 2 * (product * B).sum() + fitted)) ** 0.5
        if previous - error <= TOLERANCE * previous:
            break
    return A * scale, B, D


def _start(unfolded: Tensor, rank: int, generator: torch.Generator) -> Tensor:
    """Leading left singular vectors of an unfolding [n, ...], with random columns where `rank` exceeds n."""
    n = unfolded.shape[0]
    vectors = leading_eigenvectors(gram(unfolded), min(rank, n))
    more = torch.randn(n, max(0, rank - n), generator=generator, dtype=torch.float64) / n**0.5
    return torch.cat([vectors, more.to(vectors)], dim=1)


def _update(factor: Tensor, product: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """The least-squares solution for a factor given the other two, held back a little towards its old value."""
    normal = (one.mT @ one) * (other.mT @ other)
    damping = (DAMPING * normal.diagonal().max()).clamp_min(1e-30)
    damped = normal + damping * torch.eye(len(normal), dtype=normal.dtype, device=normal.device)
    return torch.linalg.solve(damped, product + damping * factor, left=False)


def balanced(factors: Factors) -> Factors:
    """The same sum of outer products with the three norms of every component equal."""
    norms = [torch.linalg.vector_norm(f, dim=0) for f in factors]
    target = (norms[0] * norms[1] * norms[2]) ** (1 / 3)
    A, B, D = (f * (target / n.clamp_min(1e-300)) for f, n in zip(factors, norms, strict=True))
    return A, B, D
