"""The parts of a training step: loss, optimizer, learning rate, seeds, engine."""

from __future__ import annotations

import hashlib
import math
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn import functional as F

from cnncompress.finetuning.distillation import distillation_loss
from cnncompress.finetuning.settings import FinetuneSettings
from cnncompress.network.evaluate import Evaluation
from cnncompress.network.run import forward


class Objective(nn.Module):
    """The summed loss of a network's logits; what accelerate wraps, so that the network stays as it is.

    It is the cross entropy and, with a teacher, the distillation loss, as resolved settings weigh them.
    """

    def __init__(self, network: nn.Module, settings: FinetuneSettings) -> None:
        super().__init__()
        self.network, self.temperature, self.share = network, settings.temperature, settings.teacher_share

    def forward(self, images: Tensor, labels: Tensor, expected: Tensor | None = None) -> Tensor:
        """The loss, summed over images [n, 3, H, W], labels [n] and the teacher's logits [n, classes]."""
        logits = forward(self.network, images).float()
        loss = F.cross_entropy(logits, labels, reduction="sum")
        if expected is None or self.temperature is None or self.share is None:
            return loss
        return (1 - self.share) * loss + self.share * distillation_loss(logits, expected, self.temperature)


def mixed_seed(*parts: int) -> int:
    """A seed that follows from all `parts` and looks unrelated to that of any others."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


def make_optimizer(model: nn.Module, settings: FinetuneSettings) -> torch.optim.Optimizer:
    """The optimizer of resolved settings over what requires gradients; weight decay on kernels only."""
    lr, decay = cast(float, settings.lr), cast(float, settings.weight_decay)
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=settings.momentum)
    return torch.optim.AdamW(groups, lr=lr)


def better(new: Evaluation, old: Evaluation) -> bool:
    """True where `new` has the higher top-1, or the same and the lower loss; a loss that is not finite never wins."""
    return math.isfinite(new.loss) and ((new.top1, -new.loss) > (old.top1, -old.loss) or not math.isfinite(old.loss))


def cosine(peak: float, step: int, steps: int) -> float:
    """The learning rate of step number `step`, from 0 on, of `steps`: from `peak` along half a cosine towards 0."""
    return peak * 0.5 * (1 + math.cos(math.pi * step / steps))


def make_accelerator(device: torch.device, precision: str) -> Accelerator:
    """The engine for a device and a resolved precision, on all processes that torchrun started."""
    # The state of an earlier training in this process may have another device or precision.
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=device.type == "cpu", mixed_precision="no" if precision == "fp32" else precision)
