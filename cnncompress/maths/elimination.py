"""Which input channels least squares can do without: backward elimination in closed form. Tensors in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from cnncompress.maths.linalg import psd_root, solve_psd


@dataclass
class Problem:
    """The form tr(Δ Σ Δᵀ) at an error Δ of `weight` W [F, n], with Σ = `moment` [n, n].

    The n inputs are those of the channels one after another, equally many each.
    """

    weight: Float64[Tensor, "f n"]
    moment: Float64[Tensor, "n n"]


def eliminate(
    problems: Sequence[Problem], channels: int
) -> tuple[Int64[Tensor, " {channels}"], Float64[Tensor, " {channels}+1"]]:
    """Channels in the order of their use, the last to be kept first, and the error with the first K of them, [0 .. C].

    The channels are common to all problems, whose errors are added. From all channels on, the one whose loss raises the
    error least is taken out, the weights of the others refitted each time (Reeves 1999; block form of the optimal brain
    surgeon, Hassibi and Stork 1993). All steps together take some n³ operations.
    """
    states = [_State(problem, channels) for problem in problems]
    left = torch.arange(channels)
    order, rises = torch.empty_like(left), torch.zeros(channels + 1, dtype=torch.float64)
    for count in range(channels, 0, -1):
        rise = torch.stack([state.rises(count) for state in states]).sum(0)
        out = int(rise.argmin())
        for state in states:
            state.take_out(out, count)
        order[count - 1], rises[count - 1] = left[out], rise[out]
        left[out] = left[count - 1].clone()
    return order, rises.flip(0).cumsum(0).flip(0)


def refit(problem: Problem, inputs: Int64[Tensor, " m"]) -> Float64[Tensor, "f m"]:
    """The weights [F, m] of some inputs alone that come nearest to all: W Σ[:, inputs] Σ[inputs, inputs]⁻¹."""
    right = problem.weight @ problem.moment[:, inputs]
    return solve_psd(problem.moment[inputs][:, inputs], right)


class _State:
    """A problem without the channels that were taken out: the inverse of what is left of Σ, and the weights refitted.

    The channels that are left come first; the last of them moves to the place of the one that goes.
    """

    def __init__(self, problem: Problem, channels: int) -> None:
        self.each = problem.weight.shape[1] // channels
        self.inverse = torch.cholesky_inverse(psd_root(problem.moment, 1e-12))
        self.weight = problem.weight.clone()

    def rises(self, count: int) -> Float64[Tensor, " {count}"]:
        """By how much the error rises without each of the first `count` channels: tr(P⁻¹ wᵀw) for its own parts.

        P is the part [b, b] of the inverse, w the part [F, b] of the weights.
        """
        width, b = count * self.each, self.each
        if b == 1:
            return self.weight[:, :width].square().sum(0) / self.inverse.diagonal()[:width]
        parts = self.weight[:, :width].unflatten(1, (count, b))
        grams = torch.einsum("fcb,fcd->cbd", parts, parts)
        return torch.linalg.solve(self._blocks(count), grams).diagonal(dim1=1, dim2=2).sum(1)

    def _blocks(self, count: int) -> Float64[Tensor, "{count} b b"]:
        rows = self.inverse[: count * self.each, : count * self.each].unflatten(0, (count, self.each))
        return rows.unflatten(2, (count, self.each)).diagonal(dim1=0, dim2=2).movedim(2, 0)

    def take_out(self, out: int, count: int) -> None:
        """Go on without channel `out` of the first `count`: a Schur complement."""
        b, width = self.each, count * self.each
        gone = slice(out * b, out * b + b)
        inverse, weight = self.inverse[:width, :width], self.weight[:, :width]
        across = torch.linalg.solve(inverse[gone, gone], inverse[gone].clone())
        weight.addmm_(weight[:, gone].clone(), across, alpha=-1)
        inverse.addmm_(inverse[:, gone].clone(), across, alpha=-1)
        last = slice(width - b, width)
        inverse[gone] = inverse[last].clone()
        inverse[:, gone] = inverse[:, last].clone()
        weight[:, gone] = weight[:, last].clone()
