"""Channels and the inputs that they are."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor


def inputs_of(kept: Int64[Tensor, " k"], each: int) -> Int64[Tensor, " m"]:
    """The inputs of some channels of `each` inputs, m = k · each."""
    return (kept[:, None] * each + torch.arange(each)).flatten()
