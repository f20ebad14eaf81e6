"""Random kernels to train a chain from."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cnncompress.chains.compose import last_computing
from cnncompress.chains.spec import Chain


def he_kernels(chain: Chain, generator: torch.Generator) -> list[Tensor]:
    """Normal kernels that keep the variance through the chain and the rectification after it; identities that reorder.

    He et al. 2015, eq. 10: a variance of 2 / fan-in for the last stage that computes; those before it have no
    rectification to make up for, and 1 / fan-in. For plain convolutions.
    """
    last, kernels = last_computing(chain), []
    for i, stage in enumerate(chain):
        if stage.reorders:
            kernels.append(torch.arange(stage.in_channels))
            continue
        shape = stage.tensors()["weight"].shape
        shape = shape if len(shape) == 4 else (*shape, 1, 1)
        kernels.append(normal(shape, (2.0 if i == last else 1.0) / math.prod(shape[1:]), generator))
    return kernels


def normal(shape: tuple[int, ...], variance: float, generator: torch.Generator) -> Tensor:
    """A kernel of a normal distribution around zero, float64."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * variance**0.5
