"""Input patches of a layer: which positions are looked at, and what the layer's kernel sees there."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cnncompress.chains.spec import ConvSpec


def image_seeds(images: Tensor, seed: int) -> list[int]:
    """One seed for each image [b, ...], from its pixels and `seed`: the same wherever and whenever it is seen."""
    key = str(seed).encode()[:64]
    pixels = images.detach().cpu().contiguous().flatten(1).view(torch.uint8).numpy()
    return [int.from_bytes(hashlib.blake2b(row, digest_size=8, key=key).digest(), "big") for row in pixels]


def sample_positions(seeds: Sequence[int], key: Sequence[int], total: int, count: int | None) -> tuple[Tensor, Tensor]:
    """`count` of the positions of each image, without repetition (None: all of them), and a priority for each.

    The `total` positions are those of all images, image after image; where they do not divide among the images they
    are taken as those of one. Returns indices (int64 [R], ascending) and uniform random priorities (float64 [R]),
    which depend on the image's seed and `key` only.
    """
    owners = seeds if total % len(seeds) == 0 else seeds[:1]
    each = total // len(owners)
    chosen, priorities = [], []
    for i, seed in enumerate(owners):
        random = np.random.default_rng((seed, *key))
        few = count is not None and count < each
        index = np.sort(random.choice(each, count, replace=False, shuffle=False)) if few else np.arange(each)
        chosen.append(index + i * each)
        priorities.append(random.random(len(index)))
    return torch.from_numpy(np.concatenate(chosen)), torch.from_numpy(np.concatenate(priorities))


def position_count(x: Tensor, spec: ConvSpec) -> int:
    """Output positions of a layer over the whole input: `[b, C, H, W]` of a convolution, `[..., C]` of a Linear."""
    if spec.linear:
        return x.numel() // x.shape[-1]
    height, width = spec.output_size((x.shape[-2], x.shape[-1]))
    return x.shape[0] * height * width


def gather_patches(x: Tensor, spec: ConvSpec, index: Tensor) -> Tensor:
    """The patches [R, g, n] that a layer's kernel sees at the output positions `index` [R], in float32 or float64.

    `index` counts (image, y, x) row by row; n is in the order (channel, y, x) of `weight.flatten(1)`. Only these
    patches are read: there is no padded copy of the input and no unfolding.
    """
    index = index.to(x.device)
    if spec.linear:
        rows = x.reshape(-1, 1, x.shape[-1])[index]
    else:
        size = (x.shape[-2], x.shape[-1])
        height, width = spec.output_size(size)
        ys = _taps(index // width % height, 0, size[0], spec)
        xs = _taps(index % width, 1, size[1], spec)
        image = (index // (height * width))[:, None, None]
        rows = x[image, :, ys.clamp(min=0)[:, :, None], xs.clamp(min=0)[:, None, :]]
        rows.masked_fill_(((ys < 0)[:, :, None] | (xs < 0)[:, None, :])[..., None], 0)
        rows = rows.permute(0, 3, 1, 2).reshape(len(index), spec.groups, -1)
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def _taps(position: Tensor, axis: int, size: int, spec: ConvSpec) -> Tensor:
    """The input coordinates [R, k] under the kernel at output coordinates [R] of one axis; -1 in a zero border."""
    kernel, dilation = spec.kernel_size[axis], spec.dilation[axis]
    if spec.padding == "same":
        before = dilation * (kernel - 1) // 2
        after = dilation * (kernel - 1) - before
    else:
        before = after = spec.padding[axis]
    coordinates = torch.arange(size, dtype=torch.float64, device=position.device)[None, None]
    if spec.padding_mode == "zeros":
        padded = F.pad(coordinates, (before, after), value=-1)
    else:
        padded = F.pad(coordinates, (before, after), spec.padding_mode)
    taps = position[:, None] * spec.stride[axis] + torch.arange(kernel, device=position.device) * dilation
    return padded.flatten().long()[taps]
