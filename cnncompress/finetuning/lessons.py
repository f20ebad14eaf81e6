"""What a network learns from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from cnncompress.chains.plan import Plan


@dataclass(frozen=True)
class Origin:
    """What a network was made of: another `network`, which stays as it is, by a `plan`.

    The statistics of a cascade come from `images`; None are those to train on, which are told that it is epoch 0.
    """

    network: nn.Module
    plan: Plan
    images: Dataset[Any] | None = None


@dataclass(frozen=True)
class Lessons:
    """Images to train and to validate on, and for settings that distil a `teacher`, which stays as it is.

    Items are (image [3, H, W], class index), those of `val` as `data.make_loader` takes them; where `train` has
    `set_epoch`, it is told each epoch, and its items should depend on nothing but epoch and index. `example`
    [n, c, H, W] shows the order of execution; None is an image of `val`. A cascade and `until_drop` need the `origin`,
    whose network is the teacher where no other is given.
    """

    train: Dataset[Any]
    val: Any
    teacher: nn.Module | None = None
    example: Tensor | None = None
    origin: Origin | None = None
