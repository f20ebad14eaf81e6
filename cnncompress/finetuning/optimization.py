"""The parts of a training step: loss, optimizer, learning rate, seeds, engine."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F
from torch.nn.utils import parametrize

from cnncompress.chains.modules import FactoredLayer
from cnncompress.finetuning.attention import attention_loss
from cnncompress.finetuning.distillation import Answers, distillation_loss
from cnncompress.finetuning.passes import Passes
from cnncompress.finetuning.prefix import Prefix
from cnncompress.finetuning.settings import FinetuneSettings
from cnncompress.network.evaluate import Evaluation
from cnncompress.network.processes import grouped


class Objective(nn.Module):
    """The summed loss of a network's logits; what accelerate wraps, so that the network stays as it is.

    It is the cross entropy and, with a teacher, the distillation losses, as resolved settings weigh them. The places of
    `passes` are the modules whose attention maps are learnt. What the frozen layers of `prefix` give may be known.
    """

    prefix: Prefix | None = None

    def __init__(self, passes: Passes, settings: FinetuneSettings) -> None:
        super().__init__()
        self.network, self.passes, self.settings = passes.network, passes, settings

    def forward(
        self,
        images: Tensor,
        labels: Tensor | None,
        expected: Answers | None = None,
        given: Tensor | None = None,
    ) -> Tensor:
        """The loss, summed over images [n, 3, H, W], labels [n] and the teacher's answers.

        `given` [n, ...] is what the frozen layers give for the images, which are blank then. Labels may be mixed: the
        weight of each class, [n, classes]. Without labels the teacher's answers are all there is to learn.
        """
        known = nullcontext() if given is None or self.prefix is None else self.prefix.given(given)
        learning = torch.is_grad_enabled()
        with known:
            answers, features = self.passes(images) if learning else self.passes.plain(images)
        logits = answers.float()
        share, temperature, weight = (
            getattr(self.settings, key) for key in ("teacher_share", "temperature", "attention_weight")
        )
        loss = logits.new_zeros(())
        if labels is not None:
            smoothing = self.settings.label_smoothing
            loss = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
        if expected is not None and share is not None:
            loss = (1 - share) * loss + share * distillation_loss(logits, expected.logits, temperature)
        if expected is not None and weight is not None:
            loss = loss + weight * attention_loss(features, expected.maps)
        return loss


def mixed_seed(*parts: int) -> int:
    """A seed that follows from all `parts` and looks unrelated to that of any others."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


def make_optimizer(model: nn.Module, settings: FinetuneSettings) -> torch.optim.Optimizer:
    """The optimizer of resolved settings over what requires gradients; weight decay on kernels only.

    A type of stage may limit the decay of what it trains as. The learning rate is 0 until a step sets it: that of a
    group is `scale` times the rate of the step.
    """
    decay, rest = cast(float, settings.weight_decay), settings.lr_rest
    chains = [m for m in model.modules() if isinstance(m, FactoredLayer)]
    chained, limits = {p for chain in chains for p in chain.parameters()}, limited_decay(chains)
    kinds: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in (p for p in model.parameters() if p.requires_grad):
        kind = (
            min(decay, limits.get(parameter, decay)) if parameter.dim() > 1 else 0.0,
            1.0 if parameter in chained else rest,
        )
        kinds.setdefault(kind, []).append(parameter)
    order = sorted(kinds, reverse=True)  # kernels first, as in earlier versions
    groups: list[dict[str, Any]] = [
        {"params": kinds[kind], "weight_decay": kind[0], "scale": kind[1], "lr": 0.0} for kind in order
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=settings.momentum)
    return torch.optim.AdamW(groups, lr=0.0)


def limited_decay(chains: Sequence[FactoredLayer]) -> dict[nn.Parameter, float]:
    """The highest weight decay of the parameters whose type of stage limits it, while they are in a training form."""
    stages = [pair for chain in chains for pair in zip(chain.chain, chain, strict=True)]
    limited = [(stage.weight_decay, module) for stage, module in stages if parametrize.is_parametrized(module)]
    return {p: decay for decay, module in limited if decay is not None for p in module.parameters()}


def better(new: Evaluation, old: Evaluation, by_loss: bool = False) -> bool:
    """True where `new` has the higher top-1, or the same and the lower loss; a loss that is not finite never wins.

    `by_loss` compares the losses alone.
    """
    values = [(x.loss if by_loss else -x.top1, x.loss) for x in (new, old)]
    return math.isfinite(new.loss) and (values[0] < values[1] or not math.isfinite(old.loss))


def make_accelerator(device: torch.device, precision: str) -> Accelerator:
    """The engine for a device and a resolved precision, on all processes that torchrun started."""
    # The state of an earlier training in this process may have another device or precision.
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=device.type == "cpu", mixed_precision="no" if precision == "fp32" else precision)


@contextmanager
def one_group(device: torch.device) -> Iterator[torch.device]:
    """Connects the processes that torchrun started, once for all that happens in the block; gives this one's device.

    A group that is there already stays afterwards. So does this one where the block fails: what is not done in all
    processes cannot be undone in one.
    """
    there = grouped()
    yield make_accelerator(device, "fp32").device
    if grouped() and not there:
        dist.destroy_process_group()
