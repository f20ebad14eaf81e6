"""Several processes that work on one network: what each has, and what all of them have together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist


def grouped() -> bool:
    """Whether torch.distributed is set up."""
    return dist.is_available() and dist.is_initialized()


def processes() -> tuple[int, int]:
    """This process's number and how many work together; `(0, 1)` where torch.distributed is not set up."""
    return (dist.get_rank(), dist.get_world_size()) if grouped() else (0, 1)


def everyone(value: Any) -> list[Any]:
    """The value of each process, in order. All processes must call it."""
    world = processes()[1]
    values = [value] * world
    if world > 1:
        dist.all_gather_object(values, value)
    return values


def add_up(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes. All of them must call it."""
    return _exchanged(tensor, dist.all_reduce) if processes()[1] > 1 else tensor


def as_the_first(network: nn.Module) -> None:
    """Give a network the parameters and buffers of the first process. All of them must call it.

    What each computes for itself may differ in the last bit between machines.
    """
    if processes()[1] == 1:
        return
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.copy_(_exchanged(tensor.detach().clone(), lambda given: dist.broadcast(given, 0)))


def _exchanged(tensor: Tensor, exchange: Callable[[Tensor], Any]) -> Tensor:
    """A tensor after an exchange in place, which happens where the processes can meet."""
    home = tensor.device
    tensor = (tensor.cuda() if dist.get_backend() == "nccl" else tensor.cpu()).contiguous()
    exchange(tensor)
    return tensor.to(home)
