"""What is trained: a network, its parts that train, and what it learns from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from cnncompress.finetuning.distillation import Teacher


@dataclass(frozen=True)
class Learner:
    """A network to train, the names of its modules that train, and the number of its classes.

    With a `teacher` it learns from that network's answers too.
    """

    network: nn.Module
    names: list[str]
    classes: int
    teacher: Teacher | None = None
