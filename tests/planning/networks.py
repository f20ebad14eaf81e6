"""A network whose layers may become many things, and an input of it."""

from __future__ import annotations

import torch
from torch import nn

from tests.decompositions.helpers import randn, randomize


def images(n=8, seed=0, channels=3, size=8):
    return randn(n, channels, size, size, seed=seed, dtype=torch.float32)


X = images()


def network(seed=0) -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 32, 3, padding=1, bias=False),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 40, 3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(40, 32, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 24),
    )
    randomize(model, seed)
    with torch.no_grad():
        model[-1].weight.mul_(1e-4)  # answers of about 1: a certain network has no gradients
    return model.eval()
