"""Small networks of every shape that a correction has to follow."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.decompositions.helpers import randn, randomize


def images(n: int = 6, seed: int = 0, channels: int = 3, size: int = 8) -> Tensor:
    return randn(n, channels, size, size, seed=seed, dtype=torch.float32)


def natural(n: int = 6, seed: int = 0, channels: int = 3, size: int = 8) -> Tensor:
    """Images whose neighbouring pixels and channels are alike."""
    coarse = randn(n, channels, size // 2 + 1, size // 2 + 1, seed=seed, dtype=torch.float32)
    smooth = F.interpolate(coarse, size=(size, size), mode="bilinear")
    mix = randn(channels, channels, seed=99, dtype=torch.float32)
    return torch.einsum("dc,ncyx->ndyx", mix, smooth) + 0.3


class Residual(nn.Module):
    """Two blocks, the second with a convolution and a normalisation in its shortcut; ReLUs in place."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(2 * width)
        self.conv4, self.bn4 = nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False), nn.BatchNorm2d(2 * width)
        self.short = nn.Sequential(nn.Conv2d(width, 2 * width, 1, stride=2, bias=False), nn.BatchNorm2d(2 * width))
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(2 * width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x
        x = self.relu(out)
        out = self.bn4(self.conv4(self.relu(self.bn3(self.conv3(x)))))
        out = torch.add(out, self.short(x))
        return self.head(self.relu(out).mean((2, 3)))


class Concat(nn.Module):
    """Squeezed, expanded twice, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(3, 6, 1)
        self.one, self.three = nn.Conv2d(6, 8, 1), nn.Conv2d(6, 8, 3, padding=1)
        self.last = nn.Conv2d(16, 8, 3, padding=1, groups=2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x), inplace=True)
        x = torch.cat([F.relu(self.one(x)), F.relu(self.three(x))], 1)
        return self.head(self.last(x).relu_().mean((2, 3)))


class Tokens(nn.Module):
    """Patches as a sequence: Linear layers on [n, t, c], one of them called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, stride=4)
        self.up, self.down = nn.Linear(12, 20), nn.Linear(20, 12)
        self.twice = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.down(F.gelu(self.up(x)))
        return self.twice(self.twice(x).tanh()).mean(1)


class Opaque(nn.Module):
    """A chain that torch.fx cannot trace: it looks at values."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x if float(x.abs().max()) >= 0 else -x)


class Then(nn.Module):
    """A convolution, and what `form` makes of its output and the input."""

    def __init__(self, form) -> None:
        super().__init__()
        self.a, self.form = nn.Conv2d(3, 3, 1), form

    def forward(self, x):
        return self.form(self.a(x), x)


def plain(width: int = 8) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, 2 * width, (3, 2), stride=2, padding=1, padding_mode="reflect", groups=2),
        nn.ReLU(inplace=True),
        nn.Conv2d(2 * width, width, 3, padding="same", dilation=2, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 5),
    )


def made(model: nn.Module, seed: int = 0) -> nn.Module:
    """Seeded values that keep the scale of activations, in eval mode."""
    randomize(model, seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.mul_(1.5 / module.weight[0].numel() ** 0.5)
            if isinstance(module, nn.BatchNorm2d):
                n = module.num_features
                if module.affine:
                    module.weight.copy_(0.5 + randn(n, seed=seed + 50).abs())
                module.running_mean.copy_(0.1 * randn(n, seed=seed + 51))
                module.running_var.copy_(0.5 + randn(n, seed=seed + 52).abs())
    return model.eval()
