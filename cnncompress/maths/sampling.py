"""How much the rows of a sample tell where those of one image are alike."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Float64
from torch import Tensor

ROWS_AT_ONCE = 256  # in float64, so that they stay in the caches


def row_mean(rows: Float[Tensor, "g rows n"]) -> Float64[Tensor, "g n"]:
    """The mean of the rows in float64, without a copy of all of them in it."""
    return (
        torch.stack([part.sum(1, dtype=torch.float64) for part in rows.split(ROWS_AT_ONCE, 1)]).sum(0) / rows.shape[1]
    )


def energies(rows: Float[Tensor, "g rows n"], images: int) -> Float64[Tensor, " g"]:
    """Σ over images of ‖S_i‖²_F, S_i = xᵀx / m of the m = rows / images centred rows x of one image, by group.

    The rows of an image follow each other.
    """
    x = rows.unflatten(1, (images, -1))  # [g, images, m, n]
    each, width = x.shape[2:]
    products = x @ x.mT if each <= width else x.mT @ x
    return products.square().sum((1, 2, 3), dtype=torch.float64) / each**2


def independent_rows(moment: Float[Tensor, "g n n"], energy: Float[Tensor, " g"], images: int, rows: int) -> int:
    """As how many independent rows of a Gaussian a sample of some `images` tells its second moment, at most `rows`.

    The squared error of `moment`, the mean of the S_i of `energies`, is estimated by how these differ (Ledoit and Wolf
    2004, lemma 3.4, with images in the place of observations): β² = (mean ‖S_i‖² − ‖S‖²) / (images − 1). That of ν
    independent rows is (tr² S + ‖S‖²) / ν. Groups count together. One image tells nothing of that: its rows all count.
    """
    if images < 2:
        return rows
    whole = moment.double().square().sum((1, 2))
    error = float((energy.double() / images - whole).sum()) / (images - 1)
    scale = float((moment.diagonal(dim1=1, dim2=2).double().sum(1).square() + whole).sum())
    counted = scale / error if error > 0 else math.inf
    return max(1, round(counted) - 1) if counted < rows else rows  # not a number counts all
