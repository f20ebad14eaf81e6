"""What the tests of loading share."""

from __future__ import annotations

import pytest
import torch
from torch import nn


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(error.value)
    assert message
    assert "\n" not in message
    return message


class Settings:
    """A class of a user's own, which its file alone knows."""

    def __init__(self):
        self.rate = 0.1


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.norm(self.stem(x)).mean((2, 3)))


def optimizer(state):
    return {"state": {0: {"momentum_buffer": torch.rand(4, 3, 3, 3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
