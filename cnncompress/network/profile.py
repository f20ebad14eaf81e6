"""The cost of a network: parameters, multiply-accumulates, bytes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from cnncompress.chains.spec import Call
from cnncompress.errors import CompressError
from cnncompress.network.compressed import Compressed, network_of
from cnncompress.network.copying import clone
from cnncompress.network.costs import LayerProfile, OtherProfile, Profile
from cnncompress.network.counting import counting_macs
from cnncompress.network.kinds import spec_of
from cnncompress.network.layers import layers_of
from cnncompress.network.others import others
from cnncompress.network.trace import trace


def profile(model: nn.Module | Compressed, example: Tensor) -> Profile:
    """Count what `model` costs on the first image of `example` [n, c, h, w]; the network stays as it is.

    `params` counts every parameter once, `size_bytes` every tensor of the state dict once. MACs of a convolution or
    linear layer follow from its shape; `other_macs` is what `counting_macs` sees beyond them: products in attention,
    recurrent layers, other kinds of convolution. Biases, normalisation, activations and pooling are not counted.
    Layers that the forward pass does not call as such come last, with 0 MACs.
    Raises CompressError if the forward pass fails.
    """
    model = network_of(model)
    try:
        # Counting needs shapes only, so it takes neither time nor memory where the network runs on the meta device.
        calls, total, rest = _count(_meta_copy(model), torch.empty_like(example[:1], device="meta"))
    except (CompressError, RuntimeError, TypeError, ValueError, AttributeError):
        calls, total, rest = _count(model, example[:1])
    layers = layers_of(model)
    macs = {name: call.macs for name, call in calls.items()} | {name: 0 for name in layers if name not in calls}
    profiles = (LayerProfile(n, spec_of(layers[n]), _numel(layers[n].parameters()), m) for n, m in macs.items())
    return Profile(
        params=_numel(model.parameters()),
        macs=sum(macs.values()),
        other_macs=max(0, total - sum(macs.values())),
        size_bytes=size_bytes(model),
        layers=tuple(profiles),
        input_shape=tuple(example.shape[1:]),
        others=rest,
        calls=calls,
    )


def size_bytes(model: nn.Module) -> int:
    """Bytes of the distinct tensors of the state dict: a safetensors file without its header."""
    tensors = {id(t): t for t in tree_leaves(model.state_dict(keep_vars=True)) if isinstance(t, Tensor)}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _numel(tensors: Iterator[nn.Parameter]) -> int:
    return sum(t.numel() for t in tensors)


def _meta_copy(model: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers have shapes but no values; no value is copied on the way."""
    memo: dict[int, Any] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        meta = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(meta, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else meta
    return clone(model, memo)


def _count(model: nn.Module, image: Tensor) -> tuple[dict[str, Call], int, tuple[OtherProfile, ...]]:
    """The calls of the layers, all MACs that the counter sees, and what is not in layers, in one forward pass."""
    with counting_macs() as counter:
        calls = trace(model, image)
    return calls, counter.total, others(model, counter.by_module(model))
