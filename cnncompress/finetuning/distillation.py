"""Distillation: a network learns from the answers of another, its teacher (Hinton, Vinyals and Dean 2015)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnncompress.errors import CompressError, UsageError
from cnncompress.files.tensorfile import digest_of
from cnncompress.finetuning.attention import attention, places
from cnncompress.finetuning.passes import Passes
from cnncompress.network.evaluate import NotFiniteError, tally
from cnncompress.network.inputs import input_dtype, read_batch
from cnncompress.network.parts import parts
from cnncompress.network.run import forward, inference
from cnncompress.terminal.console import bar

LOGITS, ATTENTION = "logits", "attention"
DISTILLATIONS = ("none", LOGITS, ATTENTION, f"{LOGITS}+{ATTENTION}")
TEMPERATURE = 4.0
TEACHER_SHARE = 0.9  # of the loss


def distillation_loss(logits: Tensor, expected: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """T² KL(p ‖ q), summed over the images: p and q are softmax(expected / T) and softmax(logits / T), [n, classes].

    `expected` are the teacher's logits. The factor T² keeps the gradients about as large at every temperature.
    """
    wanted, given = (F.log_softmax(x.float() / temperature, 1) for x in (expected, logits))
    return temperature**2 * F.kl_div(given, wanted, reduction="sum", log_target=True)


def learns(distill: str, what: str) -> bool:
    """Whether a distillation by its name in `DISTILLATIONS` learns the teacher's logits, or its attention maps."""
    return what in distill.split("+")


class Answers(NamedTuple):
    """What a teacher says to n images: its logits [n, classes], and its attention maps [n, H·W] where it was asked."""

    logits: Tensor
    maps: list[Tensor]


class Teacher:
    """A network whose answers another one learns from. It stays as it is; use it within `teaching`.

    The places of its `passes` are the modules at whose outputs attention maps are taken, none until `look` finds them.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.digest = digest_of(network.state_dict())
        self.passes = Passes(network)
        self._dtype = input_dtype(network)

    def answers(self, images: Tensor) -> Answers:
        """The answers to images [n, c, H, W] on the network's device, of which no gradients are known."""
        logits, maps = zip(*(self._answers(part.to(self._dtype)) for part in parts(images)), strict=True)
        # copies are made outside of inference mode, so that a loss may save them for its gradient
        return Answers(torch.cat(logits), [torch.cat(of_place) for of_place in zip(*maps, strict=True)])

    def _answers(self, images: Tensor) -> Answers:
        with torch.inference_mode():
            logits, features = self.passes(images)
            return Answers(logits, [attention(x) for x in features])

    def look(self, learner: nn.Module, images: Tensor) -> None:
        """Choose the maps that a network learns; UsageError where it has none in common with the teacher."""
        self.passes = Passes(self.network, places(learner, self.network, images))

    def check(self, images: Tensor, classes: int) -> None:
        """UsageError unless the teacher tells as many classes apart, CompressError where an answer is not finite."""
        logits = self.answers(images).logits
        if logits.shape[1:] != (classes,):
            shape = "×".join(map(str, logits.shape[1:]))
            raise UsageError(f"the teacher gives {shape} numbers an image and the network {classes}; give its original")
        if not logits.isfinite().all():
            raise CompressError("the teacher's answers are not finite; check its weights")


def tallied(
    network: nn.Module,
    batches: Iterable[Any],
    judge: Teacher | None,
    device: torch.device,
    *,
    progress: bool = True,
    kept: list[Tensor] | None = None,
) -> Tensor:
    """What `network.evaluate.tally` sums; with a teacher to judge, against its answers, and no labels are read.

    The sums are then float64 [images of the teacher's most probable class, of those with that class among the first
    five, KL(teacher ‖ network) in nats, images].
    """
    if judge is None:
        return tally(network, batches, device, progress=progress, kept=kept)
    dtype = input_dtype(network)
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    with inference(network):
        for batch in bar(batches, progress=progress, desc="compare", unit="batch", leave=False):
            images = read_batch(batch, dtype, labels=False)[0].to(device)
            if len(images):
                sums += _agreement(forward(network, images).double(), judge.answers(images).logits.double())
    return sums


def _agreement(scores: Tensor, expected: Tensor) -> Tensor:
    """The sums of `tallied` over the logits [n, classes] of a network and its teacher."""
    if not scores.isfinite().all():
        raise NotFiniteError
    hits = scores.topk(min(5, scores.shape[1])).indices == expected.argmax(1)[:, None]
    rows = F.kl_div(scores.log_softmax(1), expected.log_softmax(1), reduction="sum", log_target=True)
    return torch.stack([hits[:, 0].sum(), hits.sum(), rows, rows.new_tensor(len(scores))])


@contextmanager
def teaching(network: nn.Module | None, learner: nn.Module, device: torch.device) -> Iterator[Teacher | None]:
    """The teacher that `network` is, on `device` and in eval mode meanwhile; None without one.

    UsageError where it shares weights with the network that learns from it.
    """
    if network is None:
        yield None
        return
    if {id(p) for p in network.parameters()} & {id(p) for p in learner.parameters()}:
        raise UsageError("the teacher shares weights with the network that is trained; give a copy of the original")
    origin = next((p.device for p in network.parameters()), device)
    modes = [(m, m.training) for m in network.modules()]
    try:
        yield Teacher(network.to(device).eval())
    finally:
        network.to(origin)
        for module, training in modes:
            module.training = training
