"""The settings of a training, and its result."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch

from cnncompress.errors import UsageError, nearest
from cnncompress.finetuning.attention import ATTENTION_WEIGHT
from cnncompress.finetuning.distillation import ATTENTION, DISTILLATIONS, LOGITS, TEACHER_SHARE, TEMPERATURE, learns
from cnncompress.names.schedules import cascades
from cnncompress.network.compiling import missing_compiler
from cnncompress.network.evaluate import Evaluation

WEIGHT_DECAYS = {"sgd": 1e-4, "adamw": 0.01}
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True)
class FinetuneSettings:
    """How to train. UsageError where a value makes no sense.

    schedule: see `schedules.trainable_modules`. images_per_epoch: so many, drawn anew for each epoch; None is all. lr:
    the peak of a cosine that ends at 0; None has the training find it (see `rates`). batch_size: images of one step
    over all processes. weight_decay: on kernels only, not on biases and normalisation; None is 0.0001 for sgd, 0.01 for
    adamw. momentum: sgd only. precision: of the training arithmetic; auto is bf16 on a GPU that has it, else fp32.
    checkpoint_minutes: between checkpoints within an epoch. distill: with logits, the loss is (1 - a) times the cross
    entropy plus a times `distillation.distillation_loss` of a teacher at `temperature`, where a is `teacher_share`;
    None is 4 and 0.9. With attention, `attention_weight` times `attention.attention_loss` is added to it; None is 1000.
    unlabelled: labels are not read, a is 1, and the best epoch is the one whose answers to the validation images
    diverge least from the teacher's. freeze_bn: the statistics of batch normalisation stay as they are; None
    is so where the network knows something (`schedules.knows`). lr_rest: the
    learning rate of what is in no chain, as a share of lr. ema: the decay of the moving average of the weights that is
    validated and kept; 0 is none. accumulate: parts of a batch that are computed one after the other, whose gradients
    are added. label_smoothing: the share of a label that goes to all classes alike. mixup: alpha of the beta
    distribution by which pairs of images and labels are mixed; 0 is none. clip_norm: the gradient of the mean loss of a
    batch is scaled down to this Euclidean norm where it is longer; None leaves it as it is. until_drop: a training, or
    a step of a cascade, ends once top-1 on the validation images is at most so many points below the original's.
    cache_gib: memory for what frozen layers give for the training images, where these are the same in every epoch.
    calibration_images: training images that a cascade collects statistics from. compile: the passes of a step go
    through torch.compile. epochs: of a cascade, those of a step, and may be 0.
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
    attention_weight: float | None = None
    unlabelled: bool = False
    freeze_bn: bool | None = None
    lr_rest: float = 1.0
    ema: float = 0.0
    accumulate: int = 1
    label_smoothing: float = 0.0
    mixup: float = 0.0
    clip_norm: float | None = None
    until_drop: float | None = None
    calibration_images: int = 1000
    cache_gib: float = 2.0
    compile: bool = False

    def __post_init__(self) -> None:
        choices = {
            "optimizer": WEIGHT_DECAYS,
            "precision": PRECISIONS,
            "distill": DISTILLATIONS,
        }
        for key, known in choices.items():
            value = getattr(self, key)
            if value not in known:
                raise UsageError(f"unknown {key} '{value}'{nearest(str(value), known)}; known: {', '.join(known)}")
        ranges = {
            "epochs": (0 if cascades(self.schedule) else 1, math.inf),
            "images_per_epoch": (1, math.inf),
            "batch_size": (1, math.inf),
            "momentum": (0, 1),
            "weight_decay": (0, math.inf),
            "seed": (0, 2**63),
            "workers": (0, math.inf),
            "checkpoint_minutes": (0, math.inf),
            "lr_rest": (0, math.inf),
            "ema": (0, 1),
            "accumulate": (1, self.batch_size + 1),
            "label_smoothing": (0, 1),
            "mixup": (0, math.inf),
            "until_drop": (0, 100),
            "calibration_images": (1, math.inf),
            "cache_gib": (0, math.inf),
        }
        for key, (low, end) in ranges.items():
            value = getattr(self, key)
            if value is not None and not low <= value < end:
                raise UsageError(f"{key} {value} is out of range; give a number from {low} to below {end}")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise UsageError(f"lr {self.lr} makes no sense; give a positive number such as 0.01")
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise UsageError(f"clip_norm {self.clip_norm} makes no sense; give a positive number such as 1")
        if self.unlabelled and self.label_smoothing:
            raise UsageError("label_smoothing is for labels, which unlabelled leaves out; leave it out too")
        self._check_distillation()

    def _check_distillation(self) -> None:
        if self.unlabelled and not learns(self.distill, LOGITS):
            raise UsageError(
                "unlabelled learns the teacher's answers: give --distill logits or logits+attention with it"
            )
        needs = {"temperature": LOGITS, "teacher_share": LOGITS, "attention_weight": ATTENTION}
        for key, what in needs.items():
            value = getattr(self, key)
            if value is None:
                continue
            if not learns(self.distill, what):
                raise UsageError(f"{key} is for distillation: give --distill {what} with it")
            if key != "teacher_share" and not 0 < value < math.inf:
                raise UsageError(f"{key} {value} makes no sense; give a positive number such as 4")
        if self.teacher_share is not None and not 0 < self.teacher_share <= 1:
            raise UsageError(f"teacher_share {self.teacher_share} is out of range; give a number above 0 and up to 1")
        if self.unlabelled and self.teacher_share not in (None, 1):
            raise UsageError("teacher_share is beside labels, which unlabelled leaves out; leave it out too")

    def resolved(self, device: torch.device) -> FinetuneSettings:
        """With the defaults of optimizer, device and distillation, but for `lr`; UsageError for what is not there."""
        decay = WEIGHT_DECAYS[self.optimizer] if self.weight_decay is None else self.weight_decay
        precision = self.precision
        if precision == "auto":
            bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            precision = "bf16" if bf16 else "fp32"
        if precision == "fp16" and device.type == "cpu":
            raise UsageError("fp16 training needs a GPU; give --precision fp32 or bf16")
        if self.compile and device.type == "cpu" and (missing := missing_compiler()):
            raise UsageError(f"cannot compile: {missing}; or leave out --compile")
        known = dataclasses.replace(self, weight_decay=decay, precision=precision)
        return dataclasses.replace(known, **self._distillation())

    def _distillation(self) -> dict[str, Any]:
        """The settings of the distillation that was asked for, with their defaults."""
        defaults: dict[str, Any] = {}
        if learns(self.distill, LOGITS):
            defaults = {"temperature": TEMPERATURE, "teacher_share": 1.0 if self.unlabelled else TEACHER_SHARE}
        if learns(self.distill, ATTENTION):
            defaults["attention_weight"] = ATTENTION_WEIGHT
        given = {key: getattr(self, key) for key in defaults}
        return {key: value if given[key] is None else given[key] for key, value in defaults.items()}


@dataclass(frozen=True)
class CascadeStep:
    """One step of a cascade: what its `layers` became, and the accuracy on the validation images.

    It is that before, after decomposing, and of the best of the `epochs` that were trained.
    """

    layers: tuple[str, ...]
    words: str
    before: Evaluation
    decomposed: Evaluation
    tuned: Evaluation
    epochs: int


@dataclass(frozen=True)
class FinetuneResult:
    """Validation accuracies: of the best epoch (0 is the start), the last and the start; `history.jsonl`'s rows.

    Of an unlabelled training they are those of `distillation.tallied`, against the teacher's answers. `note` says in a
    sentence or two what the user should know about the training, and is empty otherwise. `lr` is the highest learning
    rate of the training, as given or as found, and `freeze_bn` whether batch normalisation kept its statistics.

    A cascade has `steps`, each with a learning rate of its own; the number of the last one stands for its best epoch.
    `errors` are the relative errors of its fits by layer, where the network has its weights. `uncompiled` says why
    steps were not compiled where that was asked for.
    """

    best: Evaluation
    best_epoch: int
    last: Evaluation
    start: Evaluation
    history: list[dict[str, Any]]
    note: str = ""
    lr: float | None = None
    freeze_bn: bool = False
    steps: tuple[CascadeStep, ...] = ()
    errors: dict[str, float] = dataclasses.field(default_factory=dict)
    uncompiled: str = ""
