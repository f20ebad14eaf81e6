"""Put a metric into the weight, so that a method that minimises the Frobenius norm comes close to minimising it.

Exact where the metric is a product of a matrix on the input channels and one on the filters and the chain can take
the inverses back: dense where its first (last) stage mixes all channels (filters), diagonal where that is grouped.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cnncompress.chains.compose import in_double, last_computing
from cnncompress.chains.spec import Chain
from cnncompress.metrics import Metric

Undo = Callable[[list[Tensor]], list[Tensor]]


def whiten(weight: Tensor, chain: Chain, metric: Metric, share: float = 1.0) -> tuple[Tensor, Undo]:
    """The scaled weight [F, C, kh, kw], and what turns the kernels of its chain into those of the weight's.

    A `share` below 1 goes part of the way: a method that finds local optima may find better ones from there.
    """
    weight = weight.double()
    F, C = weight.shape[:2]
    i, j = next(i for i, stage in enumerate(chain) if not stage.reorders), last_computing(chain)
    first, last = chain[i], chain[j]
    dense = last.groups == 1 and j == len(chain) - 1, first.groups == 1 and i == 0
    left, right = metric.whitener(F, C, dense)
    left, right = (root if share == 1 else _power(root, share) for root in (left, right))
    left = left if last.free_kernel else torch.eye(F, dtype=torch.float64)  # what a stage cannot take back stays out
    right = right if first.free_inputs else torch.eye(C, dtype=torch.float64)
    scaled = torch.einsum("gf,gcyx,cd->fdyx", left, weight, right)

    def undo(kernels: list[Tensor]) -> list[Tensor]:
        kernels = in_double(chain, kernels)
        if first.free_inputs:
            kernels[i] = _unmix_inputs(kernels[i], right, first.groups, kernels[:i])
        if last.free_kernel:
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
