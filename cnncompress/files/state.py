"""Entries of a state dict other than plain tensors: packed weights of quantised layers, extra states of modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


def plain_tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The entries that a file of tensors can hold."""
    return {name: value for name, value in state.items() if is_plain(value)}


def packed(state: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that no file of tensors can hold, so that only the code that built the network has them."""
    return {name: value for name, value in state.items() if not is_plain(value)}


def is_plain(value: Any) -> bool:
    """True for a tensor that is neither quantised nor sparse."""
    return isinstance(value, Tensor) and not value.is_quantized and value.layout is torch.strided


def same_values(one: Any, other: Any) -> bool:
    """Whether two entries are equal, with all tensors in them; False for objects that only themselves equal."""
    left, right = tree_leaves(one), tree_leaves(other)
    return type(one) is type(other) and len(left) == len(right) and all(map(_same, left, right))


def _same(one: Any, other: Any) -> bool:
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return type(one) is type(other) and bool(one == other)
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(plain_values(one), plain_values(other))


def plain_values(tensor: Tensor) -> Tensor:
    """The numbers of a tensor as a plain one."""
    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


def kind_of_entry(value: Any) -> str:
    """The kind of an entry that is no plain tensor, in words."""
    if any(isinstance(part, Tensor) and part.is_quantized for part in tree_leaves(value)):
        return "quantised"
    return "sparse" if isinstance(value, Tensor) else f"a {type(value).__name__}"
