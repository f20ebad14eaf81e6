"""The order in memory of a network's kernels."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from cnncompress.errors import CompressError
from cnncompress.network.provenance import Provenance, attach, provenance

MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def is_channels_last(tensor: Tensor) -> bool:
    """True for a four-dimensional tensor whose strides say channels_last and nothing else."""
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def memory_format_of(model: nn.Module) -> str:
    """The order in memory of a network's kernels, `contiguous` or `channels_last`.

    Kernels of one row and column, or of one channel, are in both at once: where all are, what was stored with it tells.
    """
    kernels = [p for p in model.parameters() if p.dim() == 4]
    if any(is_channels_last(kernel) for kernel in kernels):
        return "channels_last"
    known = provenance(model)
    both = all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    return (known.plan.memory_format if known and both else "") or "contiguous"


def to_memory_format(model: nn.Module, memory_format: str) -> nn.Module:
    """The network itself, put in `contiguous` or `channels_last`, which its provenance then tells; "" leaves it.

    ValueError for any other word, CompressError where a tensor cannot be in that order.
    """
    if not memory_format:
        return model
    if memory_format not in MEMORY_FORMATS:
        raise ValueError(f"unknown memory format {memory_format!r}")
    try:
        model.to(memory_format=MEMORY_FORMATS[memory_format])  # type: ignore[call-overload]
    except RuntimeError as error:
        raise CompressError(f"{type(model).__name__} cannot be put in {memory_format}: {error}") from error
    known = provenance(model) or Provenance()
    return attach(model, replace(known, plan=replace(known.plan, memory_format=memory_format)))
