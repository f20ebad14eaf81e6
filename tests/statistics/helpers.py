import torch
from torch import nn
from torch.nn import functional as F

from cnncompress.statistics import collect_statistics


def collect(model, batches, metric="data-covariance", **options):
    return collect_statistics(model, batches, metric, progress=False, **options)


def small_network(channels=3):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, stride=2, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 8, (3, 1), padding="same", groups=2),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 5),
    ).eval()


def images(n=6, channels=3, size=9, seed=1):
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


def covariance(rows):
    """Mean and centred second moment of rows [R, n], in float64."""
    rows = rows.double()
    mean = rows.mean(0)
    return mean, (rows - mean).T @ (rows - mean) / len(rows)


def unfolded(layer, x):
    """All input patches [R, g, n] of a convolution, by torch's own padding and unfolding."""
    (kh, kw), (dy, dx) = layer.kernel_size, layer.dilation
    if layer.padding == "same":
        tall, wide = dy * (kh - 1), dx * (kw - 1)
        sides = (wide // 2, wide - wide // 2, tall // 2, tall - tall // 2)
    else:
        sides = (layer.padding[1], layer.padding[1], layer.padding[0], layer.padding[0])
    x = F.pad(x, sides, "constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    columns = F.unfold(x, (kh, kw), (dy, dx), 0, layer.stride)
    return columns.transpose(1, 2).reshape(-1, layer.groups, columns.shape[1] // layer.groups)


class Pooled(nn.Module):
    """A layer, then the mean over positions, as logits."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x).flatten(2).mean(2)
