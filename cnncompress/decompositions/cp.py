"""CP: a 1×1 convolution to K channels, one spatial filter a channel, a 1×1 back to F."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from cnncompress.chains.spec import Chain, ConvSpec, Rank
from cnncompress.decompositions.base import SEEDS, Decomposition, refuse_matrix, register
from cnncompress.decompositions.refine import error_of, refine
from cnncompress.decompositions.sensitivity import Bounded, Factors, balanced, component_factors, price, sensitivity
from cnncompress.decompositions.whitening import whiten
from cnncompress.maths.linalg import gram, leading_eigenvectors
from cnncompress.metrics import Metric

# Each update is damped by this share of its normal matrix, which keeps it solvable where components are collinear.
DAMPING = 1e-9
# Stop when a sweep lowers what it minimises, a squared error, by less than this share of it.
TOLERANCE = 2e-5
# Entries of a weight up to which a second start is made.
ENTRIES_FOR_TWO_STARTS = 2**15
# A weight of more entries is wide: sweeps are fewer by this factor, and their products in single precision.
WIDE_ENTRIES, FEWER_SWEEPS = 2**17, 3
# Share of the metric's scaling that a fit starts from.
WHITENED_SHARE = 0.5
# Shares of the highest rank at which errors are computed for a curve; of a wide layer every other one.
RANK_SHARES = (0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)
# Sweeps of a quick fit.
QUICK_SWEEPS = 30


@register
class CP(Decomposition):
    """1×1 C→K, depthwise kh×kw, 1×1 K→F: a sum of K outer products of an input, a spatial and an output vector.

    Fitted by at most `iterations` sweeps of alternating least squares, a wide layer by a third of them; of a small one
    the best of at most `starts` fits, whose random columns follow from `seed`. The result is a local optimum, so that
    a higher rank is not sure to have a lower error. At full rank the construction is exact.
    """

    name = "cp"
    any_width = True
    source = "Denton et al. 2014 §3.2.2 (outer products); Lebedev et al. 2015"
    options = {"iterations": 100, "starts": 4, "seed": 0}  # noqa: RUF012
    counts = ("iterations", "starts")
    whitens = True
    smooth = True

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

    def bounds(self, weight: Tensor) -> Bounded:
        """That on the sensitivity."""
        return Bounded(weight)

    def quick(self) -> CP:
        """At most `QUICK_SWEEPS` sweeps from one start."""
        return CP(**self.settings | {"iterations": min(QUICK_SWEEPS, self.settings["iterations"]), "starts": 1})

    def group_factorize(self, weight: Tensor, spec: ConvSpec, rank: Rank, metric: Metric) -> list[Tensor]:
        """The three factors of the weight, scaled part of the way to the metric.

        Scaled all the way, least squares end in worse optima than the metric's own sweeps can leave.
        """
        K, full = rank[0], self.group_full_rank(spec)[0]
        if full <= K:
            return _kernels(exact_factors(weight.double().flatten(2), K), spec)
        chain = self.group_stages(spec, rank)
        scaled, undo = whiten(weight, chain, metric, WHITENED_SHARE)
        starts = max(1, min(self.settings["starts"], 2 * ENTRIES_FOR_TWO_STARTS // weight.numel()))
        iterations = max(1, self.settings["iterations"] // (1 if weight.numel() <= WIDE_ENTRIES else FEWER_SWEEPS))
        first = self.settings["seed"] * self.settings["starts"] % SEEDS  # no two seeds have a start in common
        fits = (fit_factors(scaled.flatten(2), K, iterations, seed) for seed in range(first, first + starts))
        candidates = [undo(_kernels(factors, spec)) for factors in fits]
        best = candidates[0] if starts == 1 else min(candidates, key=lambda one: _refitted(chain, one, weight, metric))
        return _kernels(component_factors(best), spec)

    def group_errors(self, weight: Tensor, spec: ConvSpec, ranks: Sequence[Rank], metric: Metric) -> Tensor:
        """As `Decomposition.group_errors`, read off a curve through those of a few ranks.

        The logarithm of the error is nearly a straight line over the rank from one of them to the next.
        """
        asked = [rank[0] for rank in ranks]
        low, high = min(asked), max(asked)
        shares = RANK_SHARES if weight.numel() <= WIDE_ENTRIES else RANK_SHARES[::2]
        looked_at = sorted({max(low, round(share * high)) for share in shares})
        errors = super().group_errors(weight, spec, [(k,) for k in looked_at], metric)
        logs = np.minimum.accumulate(errors.clamp_min(1e-300).log().numpy())
        return torch.from_numpy(np.exp(np.interp(asked, looked_at, logs)))


def _refitted(chain: Chain, kernels: list[Tensor], weight: Tensor, metric: Metric) -> float:
    return error_of(chain, refine(chain, kernels, weight, metric, 1, Bounded(weight)), weight, metric)


def _kernels(factors: Factors, spec: ConvSpec) -> list[Tensor]:
    """The kernels of the stages, every component's norm spread evenly over them."""
    output, inputs, taps = balanced(factors)
    return [inputs.mT[:, :, None, None], taps.mT.reshape(-1, 1, *spec.kernel_size), output[:, :, None, None]]


def exact_factors(tensor: Float[Tensor, "f c p"], rank: int) -> Factors:
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


def fit_factors(tensor: Float64[Tensor, "f c p"], rank: int, iterations: int, seed: int = 0) -> Factors:
    """Alternating least squares for `tensor` [F, C, P] ≈ Σ_k A[:, k] ∘ B[:, k] ∘ D[:, k], float64.

    A sweep lowers the squared error and what sensitivity costs beside it (`sensitivity`). It starts from the last one's
    factors moved on by Nesterov's momentum, or from the factors themselves where that raised the sum (Mitchell, Ye and
    De Sterck 2020). The output factor starts at zero, so that no result is worse than zero. `seed` is that of the
    columns that start at random.
    """
    scale = float(torch.linalg.vector_norm(tensor)) or 1.0
    tensor = (tensor / scale).to(torch.float32 if tensor.numel() > WIDE_ENTRIES else tensor.dtype)
    generator = torch.Generator().manual_seed(seed)
    inputs = _start(tensor.transpose(0, 1).flatten(1), rank, generator)
    taps = _start(tensor.permute(2, 0, 1).flatten(1), rank, generator)
    before = now = torch.zeros(len(tensor), rank, dtype=torch.float64, device=tensor.device), inputs, taps
    error, sensitive, each, momentum = 1.0, _sensitivity(now), price(1.0, rank), 0
    for _ in range(iterations):
        share, cost = max(0, momentum - 1) / (momentum + 2), each * error
        previous = error + cost * sensitive
        A, B, D = (n + share * (n - b) for n, b in zip(now, before, strict=True)) if share else now
        swept, lower = _sweep(tensor, (A, B, D), cost)
        momentum, sensitive = momentum + 1, _sensitivity(swept)
        if lower + cost * sensitive > previous and share:
            momentum, (swept, lower) = 0, _sweep(tensor, now, cost)
            sensitive = _sensitivity(swept)
        before, now, error = now, swept, lower
        if previous - error - cost * sensitive <= TOLERANCE * previous:
            break
    return balanced((now[0] * scale, now[1], now[2]))


def _sensitivity(factors: Factors) -> float:
    return sensitivity([f.square().sum(0) for f in factors])


def _sweep(tensor: Float[Tensor, "f c p"], factors: Factors, cost: float) -> tuple[Factors, float]:
    """Each factor in turn solved for, where sensitivity has a cost, and the squared error after it, of a unit tensor.

    Written as products with one factor at a time: the largest intermediate has max(F, C)·P·K entries, where a
    Khatri-Rao product of both channel modes would have F·C·K (gigabytes at K in the hundreds).
    """
    A, B, D = factors
    (F, C, P), rank, dtype = tensor.shape, A.shape[1], tensor.dtype

    inputs_done = (tensor.transpose(1, 2).reshape(F * P, C) @ B.to(dtype)).reshape(F, P, rank)
    BB, DD = B.mT @ B, D.mT @ D
    A = _update(A, (inputs_done * D.to(dtype).contiguous()).sum(1), _normal(BB, DD, cost))
    AA = A.mT @ A
    D = _update(D, (inputs_done * A.to(dtype).contiguous()[:, None]).sum(0), _normal(AA, BB, cost))
    DD = D.mT @ D
    outputs_done = (tensor.reshape(F, C * P).mT @ A.to(dtype)).reshape(C, P, rank)
    product = (outputs_done * D.to(dtype).contiguous()).sum(1).double()
    B = _update(B, product, _normal(AA, DD, cost))
    fitted = (AA * (B.mT @ B) * DD).sum()
    return balanced((A, B, D)), max(0.0, float(1 - 2 * (product * B).sum() + fitted))


def _normal(one: Float64[Tensor, "k k"], other: Float64[Tensor, "k k"], cost: float) -> Float64[Tensor, "k k"]:
    """The normal matrix of a factor, given the Gram matrices of the two others, with its ridge."""
    normal = one * other
    normal.diagonal().add_(cost * (one.diagonal() + other.diagonal()))
    return normal


def _start(unfolded: Float[Tensor, "n m"], rank: int, generator: torch.Generator) -> Float64[Tensor, "n {rank}"]:
    """Leading left singular vectors of an unfolding [n, ...], with random columns where `rank` exceeds n."""
    n = unfolded.shape[0]
    vectors = leading_eigenvectors(gram(unfolded), min(rank, n))
    more = torch.randn(n, max(0, rank - n), generator=generator, dtype=torch.float64) / n**0.5
    return torch.cat([vectors.double(), more.to(vectors.device)], dim=1)


def _update(
    factor: Float64[Tensor, "n k"], product: Float[Tensor, "n k"], normal: Float64[Tensor, "k k"]
) -> Float64[Tensor, "n k"]:
    """The least-squares solution for a factor given the other two, held back a little towards its old value.

    `normal` is added to on the way.
    """
    damping = (DAMPING * normal.diagonal().max()).clamp_min(1e-30)
    normal.diagonal().add_(damping)
    return torch.cholesky_solve((product + damping * factor).mT, torch.linalg.cholesky(normal)).mT
