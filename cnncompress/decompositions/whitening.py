"""Put a metric into the weight, so that a method that minimises the Frobenius norm comes close to minimising it.

Exact where the metric is a product of a matrix on the input channels and one on the filters and the chain can take
the inverses back: dense where its first (last) stage mixes all channels (filters), diagonal where that is grouped.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cnncompress.chains.spec import Chain, ConvSpec, Permutation
from cnncompress.maths.linalg import psd_root, rank_one_scaling
from cnncompress.metrics import Metric

Undo = Callable[[list[Tensor]], list[Tensor]]


def channel_root(metric: Metric, channels: int, dense: bool) -> Tensor:
    """R [C, C], lower triangular, with R·Rᵀ the metric's input moment averaged over kernel positions."""
    if metric.sigma is None:
        return torch.eye(channels, dtype=torch.float64)
    blocks = metric.sigma.diagonal_blocks(channels)
    return psd_root(blocks) if dense else blocks.diagonal().sqrt().diag()


def whiten(weight: Tensor, chain: Chain, metric: Metric, share: float = 1.0) -> tuple[Tensor, Undo]:
    """The scaled weight [F, C, kh, kw], and what turns the kernels of its chain into those of the weight's.

    A `share` below 1 goes part of the way: a method that finds local optima may find better ones from there.
    """
    weight = weight.double()
    F, C = weight.shape[:2]
    first, last = (next(s for s in order if isinstance(s, ConvSpec)) for order in (chain, chain[::-1]))
    if metric.alpha is not None:
        a, b = rank_one_scaling(metric.alpha.square().unflatten(1, (C, -1)).mean(2).sqrt())
        left, right = a.diag(), b.diag()
    else:
        right = channel_root(metric, C, dense=first.groups == 1 and first is chain[0])
        left = torch.eye(F, dtype=torch.float64)
        if metric.left_root is not None and metric.gamma is not None:
            dense = last.groups == 1 and last is chain[-1]
            left = metric.left_root if dense else metric.gamma.diagonal().double().sqrt().diag()
    left, right = (root if share == 1 else _power(root, share) for root in (left, right))
    scaled = torch.einsum("gf,gcyx,cd->fdyx", left, weight, right)

    def undo(kernels: list[Tensor]) -> list[Tensor]:
        kernels = [k if isinstance(s, Permutation) else k.double() for s, k in zip(chain, kernels, strict=True)]
        i, j = chain.index(first), len(chain) - 1 - chain[::-1].index(last)
        kernels[i] = _unmix_inputs(kernels[i], right, first.groups, kernels[:i])
        kernels[j] = _unmix_outputs(kernels[j], left, kernels[j + 1 :])
        return kernels

    return scaled, undo


def _power(root: Tensor, share: float) -> Tensor:
    """(R·Rᵀ)^(share/2), symmetric."""
    values, vectors = torch.linalg.eigh(root @ root.mT)
    return vectors * values.clamp_min(1e-30).pow(share / 2) @ vectors.mT


def _unmix_inputs(kernel: Tensor, right: Tensor, groups: int, before: list[Tensor]) -> Tensor:
    if groups == 1 and not before:
        return torch.einsum("mdyx,dc->mcyx", kernel, torch.linalg.inv(right))
    scale = 1 / right.diagonal()
    for index in before:
        scale = scale[index]
    scale = scale.reshape(groups, -1).repeat_interleave(len(kernel) // groups, dim=0)
    return kernel * scale[:, :, None, None]


def _unmix_outputs(kernel: Tensor, left: Tensor, after: list[Tensor]) -> Tensor:
    if not after:
        return torch.einsum("fg,gmyx->fmyx", torch.linalg.inv(left.mT), kernel)
    scale = 1 / left.diagonal()
    for index in reversed(after):
        scale = torch.empty_like(scale).index_copy_(0, index, scale)
    return kernel * scale[:, None, None, None]
