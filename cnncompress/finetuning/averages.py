"""The moving average of a network's weights over the steps of its training (Polyak and Juditsky 1992)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

WARM_UP = 10  # steps in which the average forgets faster, so that the start does not stay in it


class Average:
    """The average of the floating-point numbers of a network, of those after each `update`.

    After step t it is d times itself and 1 - d times the network, where d is the smaller of `decay` and
    (1 + t) / (10 + t), as in TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network, self.decay, self.steps = network, decay, 0
        self.tensors = {name: tensor.clone() for name, tensor in self._now().items()}

    def _now(self) -> dict[str, Tensor]:
        values = self.network.state_dict()
        return {n: t for n, t in values.items() if isinstance(t, Tensor) and t.is_floating_point()}

    def update(self) -> None:
        """Take the network as it is now into the average."""
        decay = min(self.decay, (1 + self.steps) / (WARM_UP + self.steps))
        self.steps += 1
        with torch.no_grad():
            for name, tensor in self._now().items():
                self.tensors[name].lerp_(tensor, 1 - decay)

    def swap(self) -> None:
        """Give the network the average, and keep its own numbers in the average's place; a second call undoes it."""
        with torch.no_grad():
            for name, tensor in self._now().items():
                own = tensor.clone()
                tensor.copy_(self.tensors[name])
                self.tensors[name].copy_(own)

    def state(self) -> dict[str, Any]:
        """The average as a checkpoint has it."""
        return {"steps": self.steps, "tensors": self.tensors}

    def load(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave; KeyError for that of another network."""
        self.steps = state["steps"]
        for name, tensor in self.tensors.items():
            tensor.copy_(state["tensors"][name])
