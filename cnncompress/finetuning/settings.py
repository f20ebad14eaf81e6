"""The settings of a training, and its result."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch

from cnncompress.errors import UsageError, nearest
from cnncompress.finetuning.distillation import DISTILLATIONS, TEACHER_SHARE, TEMPERATURE
from cnncompress.finetuning.schedules import SCHEDULES
from cnncompress.network.evaluate import Evaluation

LEARNING_RATES = {"sgd": 0.01, "adamw": 3e-4}
WEIGHT_DECAYS = {"sgd": 1e-4, "adamw": 0.01}
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True)
class FinetuneSettings:
    """How to train. UsageError where a value makes no sense.

    schedule: see `schedules.trainable_modules`. images_per_epoch: so many, drawn anew for each epoch; None is all. lr:
    the peak of a cosine that ends at 0; None is 0.01 for sgd, 0.0003 for adamw. batch_size: images of one step over all
    processes. weight_decay: on kernels only, not on biases and normalisation; None is 0.0001 for sgd, 0.01 for adamw.
    momentum: sgd only. precision: of the training arithmetic; auto is bf16 on a GPU that has it, else fp32.
    checkpoint_minutes: between checkpoints within an epoch. distill: with logits, the loss is (1 - a) times the cross
    entropy plus a times `distillation.distillation_loss` of a teacher at `temperature`, where a is `teacher_share`;
    None is 4 and 0.9.
    """

    schedule: str = "all"
    epochs: int = 1
    images_per_epoch: int | None = None
    lr: float | None = None
    batch_size: int = 64
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float | None = None
    precision: str = "auto"
    seed: int = 0
    workers: int = 0
    checkpoint_minutes: float = 10
    distill: str = "none"
    temperature: float | None = None
    teacher_share: float | None = None

    def __post_init__(self) -> None:
        choices = {
            "schedule": SCHEDULES,
            "optimizer": LEARNING_RATES,
            "precision": PRECISIONS,
            "distill": DISTILLATIONS,
        }
        for key, known in choices.items():
            value = getattr(self, key)
            if value not in known:
                raise UsageError(f"unknown {key} '{value}'{nearest(str(value), known)}; known: {', '.join(known)}")
        ranges = {
            "epochs": (1, math.inf),
            "images_per_epoch": (1, math.inf),
            "batch_size": (1, math.inf),
            "momentum": (0, 1),
            "weight_decay": (0, math.inf),
            "seed": (0, 2**63),
            "workers": (0, math.inf),
            "checkpoint_minutes": (0, math.inf),
        }
        for key, (low, end) in ranges.items():
            value = getattr(self, key)
            if value is not None and not low <= value < end:
                raise UsageError(f"{key} {value} is out of range; give a number from {low} to below {end}")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise UsageError(f"lr {self.lr} makes no sense; give a positive number such as 0.01")
        self._check_distillation()

    def _check_distillation(self) -> None:
        for key in ("temperature", "teacher_share"):
            if self.distill == "none" and getattr(self, key) is not None:
                raise UsageError(f"{key} is for distillation: give --distill logits with it")
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise UsageError(f"temperature {self.temperature} makes no sense; give a positive number such as 4")
        if self.teacher_share is not None and not 0 < self.teacher_share <= 1:
            raise UsageError(f"teacher_share {self.teacher_share} is out of range; give a number above 0 and up to 1")

    def resolved(self, device: torch.device) -> FinetuneSettings:
        """With the defaults of the optimizer, device and distillation filled in; UsageError for fp16 without a GPU."""
        lr = LEARNING_RATES[self.optimizer] if self.lr is None else self.lr
        decay = WEIGHT_DECAYS[self.optimizer] if self.weight_decay is None else self.weight_decay
        precision = self.precision
        if precision == "auto":
            bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            precision = "bf16" if bf16 else "fp32"
        if precision == "fp16" and device.type == "cpu":
            raise UsageError("fp16 training needs a GPU; give --precision fp32 or bf16")
        known = dataclasses.replace(self, lr=lr, weight_decay=decay, precision=precision)
        if self.distill == "none":
            return known
        temperature = TEMPERATURE if self.temperature is None else self.temperature
        share = TEACHER_SHARE if self.teacher_share is None else self.teacher_share
        return dataclasses.replace(known, temperature=temperature, teacher_share=share)


@dataclass(frozen=True)
class FinetuneResult:
    """Validation accuracies: of the best epoch (0 is the start), the last and the start; `history.jsonl`'s rows.

    `note` says in a sentence or two what the user should know about the training, and is empty otherwise.
    """

    best: Evaluation
    best_epoch: int
    last: Evaluation
    start: Evaluation
    history: list[dict[str, Any]]
    note: str = ""
