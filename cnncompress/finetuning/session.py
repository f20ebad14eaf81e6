"""What is the same in every part of a training: lessons, settings, device."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from cnncompress.chains.training import fold, start_training
from cnncompress.finetuning.checkpoints import Checkpoints
from cnncompress.finetuning.distillation import ATTENTION, learns, teaching
from cnncompress.finetuning.learner import Learner
from cnncompress.finetuning.lessons import Lessons
from cnncompress.finetuning.schedules import freeze_others
from cnncompress.finetuning.settings import FinetuneResult, FinetuneSettings
from cnncompress.finetuning.trainer import Trainer
from cnncompress.finetuning.validation import validated
from cnncompress.network.copying import clone
from cnncompress.network.evaluate import Evaluation
from cnncompress.network.inputs import float_types, input_dtype, with_types
from cnncompress.network.run import forward, inference


@dataclass(frozen=True)
class Session:
    """What is learnt, by which resolved settings, on which device.

    A training ends early once the network is right on `enough` percent of the validation images. There were so many
    `epochs_before`.
    """

    lessons: Lessons
    settings: FinetuneSettings
    device: torch.device
    enough: float | None = None
    epochs_before: int = 0

    def run(self, network: nn.Module, names: Iterable[str], checkpoints: Checkpoints, resume: bool) -> FinetuneResult:
        """Train the modules `names` of a network that is in its training form; it then has its best weights."""
        names, example = list(names), self.example(network)
        freeze_others(network, names, example)
        with inference(network):
            classes = forward(network, example[:1]).shape[-1]
        with teaching(self.lessons.teacher, network, self.device) as taught:
            if taught is not None:
                taught.check(example[:1].to(self.device), classes)
                if learns(self.settings.distill, ATTENTION):
                    taught.look(network, example[:1])
            learner = Learner(network, names, classes, taught, self.enough, self.epochs_before)
            return Trainer(learner, self.lessons, self.settings, checkpoints, self.device).run(resume)

    def example(self, network: nn.Module) -> Tensor:
        """The example of the lessons, where a network is and of its type."""
        place = next((p.device for p in network.parameters()), self.device)
        return cast(Tensor, self.lessons.example).to(place, input_dtype(network))

    def until(self, original: Evaluation) -> Session:
        """The session that ends near the accuracy of the original, where its settings say how near."""
        drop = self.settings.until_drop
        return self if drop is None else dataclasses.replace(self, enough=round(original.top1 - drop, 9))

    def validated(self, network: nn.Module) -> Evaluation:
        """The accuracy of a network on the validation images, or how near it is to the teacher; it stays where it is.

        That is what a training without labels looks at.
        """
        origin = next((p.device for p in network.parameters()), self.device)
        taught = self.lessons.teacher if self.settings.unlabelled else None
        teacher = None if taught is None else clone(taught)
        with teaching(teacher, network, self.device) as judge:
            example = self.lessons.example
            found = validated(network.to(self.device), self.lessons.val, judge, self.settings, self.device, example)
        network.to(origin)
        return found


@contextmanager
def in_training(model: nn.Module, device: torch.device, in_single: bool) -> Iterator[None]:
    """The network in the form that it trains in, `in_single` precision where that is asked for.

    Afterwards it is on that device, in its own types, with the tensors that are stored, and its parameters and modules
    have the flags and modes that they had.
    """
    origin = next((p.device for p in model.parameters()), device)
    types, usual = float_types(model), input_dtype(model)
    if in_single:
        model.float()
    start_training(model)
    flags = [(p, p.requires_grad) for p in model.parameters()]
    modes = [(m, m.training) for m in model.modules()]
    try:
        yield
    finally:
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)
            parameter.grad = None
        for module, training in modes:
            module.training = training
        fold(model)
        with_types(model.to(origin), types, usual)


def rounded_to(dtype: torch.dtype) -> str:
    """What is said of a network in half precision, whose training is not."""
    return f"trained in float32 and rounded to {str(dtype).removeprefix('torch.')}"
