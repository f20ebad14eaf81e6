"""The scale of the channels between the stages of a chain: free in floating point, but not in 8-bit integers.

Nothing but a permutation lies between two stages, so a channel may be any multiple of itself: the stage that makes it
is divided by what the next one is multiplied with. Activations are rounded in steps of one size for all channels of a
tensor, which are too coarse for the small ones among large ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from cnncompress.chains.modules import FactoredLayer
from cnncompress.chains.spec import Chain

LEAST_RANGE = 1e-6  # of the largest in a tensor: what stays below it is nothing but rounding


def inner(chain: Chain) -> list[tuple[int, int]]:
    """The places of the stages that follow each other, with nothing but permutations between them, and may be scaled.

    A stage whose kernel cannot be any has no scale of its own.
    """
    computing = [i for i, stage in enumerate(chain) if not stage.reorders]
    return [(i, j) for i, j in pairwise(computing) if chain[i].free_inputs and chain[j].free_inputs]


def balance(layer: FactoredLayer, ranges: Mapping[int, Float[Tensor, " m"]]) -> None:
    """Give the channels between stages the same range: it computes the same.

    `ranges` has the range of each channel that a stage gives, by the place of the stage; others stay as they are.
    """
    chain, kernels = layer.chain, layer.kernels()
    pairs = [(i, j) for i, j in inner(chain) if i in ranges]
    scaled = sorted({place for pair in pairs for place in pair})
    read = {place: chain[place].read_bias(layer[place]) for place in scaled}
    biases = {place: bias.clone() for place, bias in read.items() if bias is not None}
    for i, j in pairs:
        scale = scale_of(ranges[i]).to(kernels[i].device)
        kernels[i] = kernels[i] / scale[:, None, None, None]
        if i in biases:
            biases[i] = biases[i] / scale
        for index in kernels[i + 1 : j]:
            scale = scale[index]
        kernels[j] = scaled_inputs(kernels[j], scale, chain[j].groups)
    for place in scaled:  # no others: a kernel that is read need not be all that a module has
        chain[place].write_kernel(layer[place], kernels[place])
        if place in biases:
            chain[place].add_to_bias(layer[place], biases[place])


def scale_of(ranges: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    """What to divide channels by for all their ranges to be the geometric mean; float64, 1 for channels of zeros."""
    values = ranges.double()
    counted = values > LEAST_RANGE * values.max()
    if not counted.any():
        return torch.ones_like(values)
    return torch.where(counted, values / values[counted].log().mean().exp(), 1.0)


def scaled_inputs(
    kernel: Float[Tensor, "f c kh kw"], scale: Float[Tensor, " m"], groups: int
) -> Float[Tensor, "f c kh kw"]:
    """The kernel for inputs that are divided by `scale`, m = groups · c."""
    parts = kernel.unflatten(0, (groups, -1)) * scale.reshape(groups, 1, -1, 1, 1)
    return parts.flatten(0, 1)
