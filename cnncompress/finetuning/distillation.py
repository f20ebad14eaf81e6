"""Distillation: a network learns from the answers of another, its teacher (Hinton, Vinyals and Dean 2015)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnncompress.errors import CompressError, UsageError
from cnncompress.files.tensorfile import digest_of
from cnncompress.network.inputs import input_dtype
from cnncompress.network.run import forward

DISTILLATIONS = ("none", "logits")
TEMPERATURE = 4.0
TEACHER_SHARE = 0.9  # of the loss


def distillation_loss(logits: Tensor, expected: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """T² KL(p ‖ q), summed over the images: p and q are softmax(expected / T) and softmax(logits / T), [n, classes].

    `expected` are the teacher's logits. The factor T² keeps the gradients about as large at every temperature.
    """
    wanted, given = (F.log_softmax(x.float() / temperature, 1) for x in (expected, logits))
    return temperature**2 * F.kl_div(given, wanted, reduction="sum", log_target=True)


class Teacher:
    """A network whose answers another one learns from. It stays as it is; use it within `teaching`."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.digest = digest_of(network.state_dict())
        self._dtype = input_dtype(network)

    def answers(self, images: Tensor) -> Tensor:
        """The logits [n, classes] of images [n, c, H, W] on the network's device, of which no gradients are known."""
        with torch.inference_mode():
            logits = forward(self.network, images.to(self._dtype))
        return logits.clone()  # outside of inference mode, so that a loss may save it for its gradient

    def check(self, images: Tensor, classes: int) -> None:
        """UsageError unless the teacher tells as many classes apart, CompressError where an answer is not finite."""
        logits = self.answers(images)
        if logits.shape[1:] != (classes,):
            shape = "×".join(map(str, logits.shape[1:]))
            raise UsageError(f"the teacher gives {shape} numbers an image and the network {classes}; give its original")
        if not logits.isfinite().all():
            raise CompressError("the teacher's answers are not finite; check its weights")


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
