"""How far a sum of outer products moves when its vectors do, and fits that keep it bounded.

A best fit often has large components that cancel each other, or does not exist: the error falls on and on while they
grow (de Silva and Lim 2008). They magnify training steps, rounding and noise. So a fit lowers log E + `PRICE` · S / S₀:
E is the squared error, S the sensitivity (Phan et al. 2020), and S₀ that of orthogonal components of equal size with
the norm of the weight. A step solves for one factor under a ridge of `PRICE` · E / S₀, which lowers this sum too, as a
logarithm lies below its tangents. What fits exactly is fitted exactly: the ridge vanishes with the error.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from cnncompress.decompositions.refine import Bounds

PRICE = 0.2  # of S₀, as a share of the squared error

Factors = tuple[Float[Tensor, "f k"], Float[Tensor, "c k"], Float[Tensor, "p k"]]
Squares = Sequence[Float64[Tensor, " k"]]  # of each factor, the squared norm of every component's vector


def sensitivity(squares: Squares) -> float:
    """The mean squared change of the sum when each vector moves by 1 in a random direction, times their dimension.

    That of Phan et al. (2020, Lemma 1) moves each entry as far, and so the longest vectors farthest.
    """
    a, b, d = squares
    return float((b * d + a * d + a * b).sum())


def price(norm: float, rank: int) -> float:
    """`PRICE` / S₀ for `rank` components and a weight of this norm."""
    return PRICE / (3 * rank ** (1 / 3) * max(norm, 1e-100) ** (4 / 3))


def balanced(factors: Factors) -> Factors:
    """The same sum of outer products with the three norms of every component equal: its least sensitivity."""
    norms = [torch.linalg.vector_norm(f, dim=0) for f in factors]
    target = (norms[0] * norms[1] * norms[2]) ** (1 / 3)
    A, B, D = (f * (target / n.clamp_min(1e-300)) for f, n in zip(factors, norms, strict=True))
    return A, B, D


class Bounded(Bounds):
    """Keeps the sensitivity of kernels 1×1, depthwise and 1×1 for `weight` [F, C, kh, kw] while they are refined."""

    def __init__(self, weight: Tensor) -> None:
        self.norm = float(torch.linalg.vector_norm(weight.double()))

    def ridge(self, kernels: Sequence[Tensor], i: int, error: float) -> Tensor:
        """That of kernel `i` at a squared error, by its channels."""
        squares = [f.square().sum(0) for f in component_factors(kernels)]  # output, input, spatial
        one, other = (squares[j] for j in range(3) if j != (i + 1) % 3)
        paid = error * price(self.norm, len(one)) * (one + other)  # what the sensitivity has of each square
        return paid[None, :, None, None] if i == 2 else paid[:, None, None, None]

    def evened(self, kernels: Sequence[Tensor]) -> list[Tensor]:
        """The kernels with the norms of every component spread evenly over them."""
        output, inputs, taps = balanced(component_factors(kernels))
        return [k.reshape(kernel.shape) for k, kernel in zip((inputs.mT, taps.mT, output), kernels, strict=True)]


def component_factors(kernels: Sequence[Tensor]) -> Factors:
    """Output [F, K], input [C, K] and spatial [kh·kw, K] vectors of the kernels of such a chain, float64."""
    inputs, taps, output = (kernel.double().flatten(1) for kernel in kernels)
    return output, inputs.mT, taps.mT
