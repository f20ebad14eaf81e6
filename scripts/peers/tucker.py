"""Tucker-2 by TensorLy (HOOI): one fraction of the input and output channels for every convolution larger than 1×1.

Kim et al. 2016, without its ranks by variational Bayes, which TensorLy does not have. With and without the first layer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial

import tensorly
import torch
from tensorly.decomposition import partial_tucker
from torch import nn

from cnncompress.network.swap import swap
from peers.shared import Make, Task, rounding


def variants(task: Task) -> Iterator[tuple[str, Make, float]]:
    """(Name, what makes the network, 0) of each way to use the tool."""
    named = task.bench.model.named_modules()
    every = [name for name, m in named if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1]
    yield "no 1×1", partial(uniform, task, every), 0.0
    yield "inner", partial(uniform, task, every[1:]), 0.0


def uniform(task: Task, names: list[str]) -> nn.Module:
    """The same fraction of the channels in all of some layers."""

    def at(fraction: float) -> nn.Module:
        network = copy.deepcopy(task.bench.model)
        for name, part in zip(names, rounding(len(names)), strict=True):
            conv = network.get_submodule(name)
            assert isinstance(conv, nn.Conv2d)
            ranks = [max(1, int(fraction * c + part)) for c in (conv.out_channels, conv.in_channels)]
            swap(network, name, split(conv, ranks))
        return network

    return task.search(at, 0.0, 1.0)


def split(conv: nn.Conv2d, ranks: list[int]) -> nn.Module:
    """1×1 to ranks[1] channels, k×k to ranks[0], 1×1; the layer itself where that has no fewer weights."""
    size = conv.kernel_size[0] * conv.kernel_size[1]
    out, inner = ranks
    if inner * conv.in_channels + size * inner * out + out * conv.out_channels >= conv.weight.numel():
        return conv
    with tensorly.backend_context("pytorch"):
        (core, (after, before)), _ = partial_tucker(conv.weight.detach().contiguous(), rank=ranks, modes=[0, 1])
    first = nn.Conv2d(conv.in_channels, inner, 1, bias=False)
    middle = nn.Conv2d(inner, out, conv.kernel_size, conv.stride, conv.padding, conv.dilation, bias=False)
    last = nn.Conv2d(out, conv.out_channels, 1, bias=conv.bias is not None)
    with torch.no_grad():
        first.weight.copy_(before.T[:, :, None, None])
        middle.weight.copy_(core)
        last.weight.copy_(after[:, :, None, None])
        if conv.bias is not None and last.bias is not None:
            last.bias.copy_(conv.bias)
    return nn.Sequential(first, middle, last)
