"""The output positions of a layer that statistics and corrections use."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


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
