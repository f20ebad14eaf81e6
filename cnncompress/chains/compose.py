"""Composition of chains: the one dense kernel that equals a chain of kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cnncompress.chains.spec import Chain
from cnncompress.errors import UnsupportedLayerError


def dense_kernel(kernel: Tensor, groups: int) -> Tensor:
    """A grouped kernel [F, C/g, kh, kw] as the block-diagonal kernel [F, C, kh, kw] of one group."""
    if groups == 1:
        return kernel
    F, C, kh, kw = kernel.shape
    dense = kernel.new_zeros(groups, F // groups, groups, C, kh, kw)
    index = torch.arange(groups)
    dense[index, :, index] = kernel.reshape(groups, F // groups, C, kh, kw)
    return dense.reshape(F, groups * C, kh, kw)


def compose(chain: Chain, kernels: Sequence[Tensor]) -> Tensor:
    """The one kernel [F, C, kh, kw] (one group) that does what the chain does.

    Raises UnsupportedLayerError if two stages both extend along the same axis: their product would be larger than a
    layer of the vocabulary.
    """
    total: Tensor | None = None
    for stage, kernel in zip(chain, kernels, strict=True):
        total = stage.compose(total, kernel)
    if total is None:
        raise UnsupportedLayerError("an empty chain has no kernel")
    return total


def in_double(chain: Chain, kernels: Sequence[Tensor]) -> list[Tensor]:
    """The kernels in float64; an index stays what it is."""
    return [k if stage.reorders else k.double() for stage, k in zip(chain, kernels, strict=True)]


def last_computing(chain: Chain) -> int:
    """The place of the last stage that computes, which the bias belongs to."""
    return max(i for i, stage in enumerate(chain) if not stage.reorders)


def compose_two(first: Tensor, second: Tensor, groups: int = 1) -> Tensor:
    """The kernel of `first` [M, C, kh, kw] followed by `second` [F, M/groups, bh, bw]; raises as `compose` does."""
    if (first.shape[2] > 1 and second.shape[2] > 1) or (first.shape[3] > 1 and second.shape[3] > 1):
        raise UnsupportedLayerError("two stages extend along the same axis; no kernel of this size does the same")
    parts = (tensor.unflatten(0, (groups, -1)) for tensor in (second, first.to(second.dtype)))
    product = torch.einsum("gfmij,gmckl->gfcikjl", *parts).flatten(0, 1)
    return product.flatten(4, 5).flatten(2, 3)


def extract_groups(dense: Tensor, groups: int) -> Tensor:
    """The inverse of `dense_kernel`: the diagonal blocks of [F, C, kh, kw] as [F, C/g, kh, kw]."""
    if groups == 1:
        return dense
    return torch.cat([part.chunk(groups, dim=1)[i] for i, part in enumerate(dense.chunk(groups))])
