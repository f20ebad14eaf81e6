"""Descent on functions that have no closed minimum."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

MEMORY = 20  # steps that the approximation of the curvature looks back on


def descend(loss: Callable[[Sequence[Tensor]], Tensor], start: Sequence[Tensor], steps: int) -> list[Tensor]:
    """Tensors with a lower loss than the `start`, after at most so many steps of L-BFGS, or the start.

    `loss` of the tensors is a scalar [] and differentiable.
    """
    tensors = [tensor.detach().clone().requires_grad_() for tensor in start]
    optimizer = torch.optim.LBFGS(
        tensors,
        max_iter=steps,
        max_eval=2 * steps,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        history_size=MEMORY,
        line_search_fn="strong_wolfe",
    )

    def evaluated() -> Tensor:
        optimizer.zero_grad()
        value = loss(tensors)
        value.backward()
        return value

    with torch.enable_grad():
        before = float(optimizer.step(evaluated).detach())
    found = [tensor.detach() for tensor in tensors]
    with torch.no_grad():
        lower = float(loss(found)) < before
    return found if lower else list(start)
