"""What is trained: a network, its parts that train, and what it learns from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from cnncompress.finetuning.distillation import Teacher


@dataclass(frozen=True)
class Learner:
    """A network to train, the names of its modules that train, and the number of its classes.

    With a `teacher` it learns from that network's answers too. It has learnt enough once it is right on `enough`
    percent of the validation images. Orders and augmentations go on from those of the `epochs_before`.
    """

    network: nn.Module
    names: list[str]
    classes: int
    teacher: Teacher | None = None
    enough: float | None = None
    epochs_before: int = 0
