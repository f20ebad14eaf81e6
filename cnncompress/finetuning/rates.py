"""The learning rate of a training: found by short trials on its own images, warmed up, and lowered along a cosine.

A network that was fitted well has little to learn, and steps of the usual size throw away more than they bring. How
large they may be follows from the network, the images, the batch and the optimizer together, so it is tried.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from cnncompress.finetuning.batches import Batches
from cnncompress.finetuning.optimization import mixed_seed
from cnncompress.finetuning.settings import FinetuneSettings
from cnncompress.finetuning.stepping import Stepper
from cnncompress.network.inputs import input_dtype
from cnncompress.network.processes import add_up
from cnncompress.terminal.console import bar

FIRST_RATES = {"sgd": 1e-3, "adamw": 3e-5}  # the first that is tried
RATIO = 10**0.5  # between two that are tried
LARGEST, SMALLEST = 3, -3  # steps of this ratio from the first
TRIAL_SHARE = 0.25  # steps of a trial, of those of the training
TRIAL_STEPS = (4, 16)
JUDGING_BATCHES = 8
GAIN_SHARE = 0.9  # of the largest fall in loss: the smaller of two rates that do about as well has less noise
WARM_UP_SHARE = 0.1  # of the steps
WARM_UP_STEPS = 500


def warm_up(steps: int) -> int:
    """The number of steps in which the learning rate grows, of `steps`."""
    return min(int(WARM_UP_SHARE * steps), WARM_UP_STEPS)


def rate_at(peak: float, step: int, steps: int) -> float:
    """The learning rate of step number `step`, from 0 on, of `steps`.

    It grows by equal amounts in the steps of `warm_up`, is `peak` after them, and falls along half a cosine towards 0.
    """
    growing = warm_up(steps)
    if step < growing:
        return peak * (step + 1) / (growing + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - growing) / (steps - growing)))


@dataclass
class Found:
    """A learning rate, the loss of each that was tried on validation images, and that before: in nats an image."""

    rate: float
    before: float
    tried: dict[float, float] = field(default_factory=dict)
    steps: int = 0

    def __str__(self) -> str:
        after = self.tried[self.rate]
        return (
            f"learning rate {self.rate:.2g}, of {len(self.tried)} tried for {self.steps} steps: loss "
            f"{self.before:.4g} → {after:.4g} on validation images"
        )


def search(loss_of: Callable[[float], float], first: float, before: float) -> dict[float, float]:
    """The losses of `first` times powers of `RATIO`, around the least one, by rate from the smallest on.

    From `first` on larger ones are tried until one is worse, or else smaller ones; these too where no larger one has
    brought the loss below that `before`. A loss that is not finite is worse.
    """
    tried: dict[int, float] = {}

    def loss(power: int) -> float:
        if power not in tried:
            value = loss_of(first * RATIO**power)
            tried[power] = value if math.isfinite(value) else math.inf
        return tried[power]

    best = 0
    while best != LARGEST and loss(best + 1) < loss(best):
        best += 1
    if loss(best) >= before or best == 0:
        best = 0
        while best != SMALLEST and loss(best - 1) < loss(best):
            best -= 1
    return {first * RATIO**power: tried[power] for power in sorted(tried)}


def choose(tried: dict[float, float], before: float) -> float:
    """The smallest rate that brings `GAIN_SHARE` of the largest fall from the loss `before`; the first without one."""
    most = before - min(tried.values())
    return min((rate for rate, loss in tried.items() if before - loss >= GAIN_SHARE * most > 0), default=min(tried))


def find_rate(
    stepper: Stepper, batches: Batches, val: Any, settings: FinetuneSettings, set_modes: Callable[[], None]
) -> Found:
    """The learning rate that `choose` takes after short trials; the network and the optimizer stay as they are.

    A trial begins at the present weights and takes `TRIAL_SHARE` of the steps of the training, within `TRIAL_STEPS`,
    with their warm-up and cosine. It is judged on up to `JUDGING_BATCHES` batches of `val`, in eval mode: the original
    may know all training images by heart, on which nothing is left to learn then. All trials see the same batches,
    those of an epoch 0 that no training has, and the same random numbers.
    """
    wanted = min(max(int(TRIAL_SHARE * batches.steps * settings.epochs), TRIAL_STEPS[0]), TRIAL_STEPS[1])
    steps = min(wanted, batches.steps)
    start, dtype, classes = copy.deepcopy(stepper.state()), input_dtype(stepper.model), stepper.classes

    def held_loss() -> float:
        held = batches.others(val, JUDGING_BATCHES)
        total = stepper.loss(batches.checked(batch, dtype, classes) for batch in held)
        return total / int(add_up(torch.tensor(len(held.read))))

    def trial(rate: float) -> float:
        set_modes()
        reader, loss = batches.of_epoch(0, 0), 0.0
        for step in range(steps):
            torch.manual_seed(mixed_seed(settings.seed, 0, step, stepper.rank))
            batch = batches.read(reader, dtype, classes)
            loss, _ = stepper.step(batch, rate_at(rate, step, steps), False)
            if not math.isfinite(loss):
                break
        found = held_loss() if math.isfinite(loss) else math.inf  # the same in all processes
        stepper.load(copy.deepcopy(start))
        progress.update()
        return found

    with bar(progress=stepper.main, desc="learning rate", unit="trial", leave=False) as progress:
        before = held_loss()
        tried = search(trial, FIRST_RATES[settings.optimizer], before)
    return Found(choose(tried, before), before, tried, steps)
