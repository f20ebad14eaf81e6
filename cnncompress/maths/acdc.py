"""Matrices that are products of diagonals and cosine transforms (Moczulski et al. 2016, ACDC)."""

from __future__ import annotations

import math
from functools import cache

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor


@cache
def dct_matrix(n: int) -> Float64[Tensor, "{n} {n}"]:
    """The orthonormal discrete cosine transform of type II: row k times a vector [n] is its coefficient k."""
    k, j = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    rows = torch.cos(math.pi * k * (2 * j + 1) / (2 * n)) * (2 / n) ** 0.5
    rows[0] /= 2**0.5
    return rows


def riffle(n: int) -> Int64[Tensor, " {n}"]:
    """The perfect shuffle of n channels as an index: the first half and the second in turns, the first one first."""
    half = (n + 1) // 2
    places = torch.arange(n)
    return places // 2 + half * (places % 2)


def acdc_matrix(
    diagonals: Float[Tensor, "*many l 2 n"], channels: int, filters: int
) -> Float[Tensor, "*many {filters} {channels}"]:
    """The matrices of l layers: the first diagonal, cosine transform, the second, inverse transform, riffle shuffle.

    `n` is the larger of `channels` and `filters`. Fewer channels are repeated until there are n, the first one again
    after the last. Of n outputs, those that are `filters` apart are added. Differentiable.
    """
    n = diagonals.shape[-1]
    forth = dct_matrix(n).to(diagonals)
    back, places = forth.mT[riffle(n)], torch.arange(n, device=diagonals.device)
    rows = (places[:, None] % channels == places[:channels]).to(diagonals)
    for layer in diagonals.unbind(-3):
        first, second = layer[..., None].unbind(-3)
        rows = back @ (second * (forth @ (first * rows)))
    if n == filters:
        return rows
    return rows.new_zeros(*rows.shape[:-2], filters, channels).index_add(-2, places % filters, rows)
