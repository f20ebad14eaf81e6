"""The mode that a network is evaluated in."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def evaluating(network: M) -> M:
    """The network itself, in eval mode: where a class has a `train` of its own, `eval()` may return nothing."""
    network.eval()
    return network
