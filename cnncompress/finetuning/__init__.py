"""Train a decomposed network: SGD or AdamW with warm-up and cosine, on one or several processes, resumable."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor, nn

from cnncompress.data import make_loader
from cnncompress.errors import UsageError
from cnncompress.files.state import packed
from cnncompress.finetuning.attention import attention_loss
from cnncompress.finetuning.cascade import Cascade
from cnncompress.finetuning.checkpoints import Checkpoints
from cnncompress.finetuning.distillation import distillation_loss
from cnncompress.finetuning.lessons import Lessons, Origin
from cnncompress.finetuning.optimization import one_group
from cnncompress.finetuning.schedules import freeze_others, trainable_modules, training_modes
from cnncompress.finetuning.session import Session, in_training, rounded_to
from cnncompress.finetuning.settings import CascadeStep, FinetuneResult, FinetuneSettings
from cnncompress.names.schedules import cascades
from cnncompress.network.compressed import Compressed, network_of
from cnncompress.network.device import resolve_device
from cnncompress.network.inputs import input_dtype, read_batch
from cnncompress.network.provenance import provenance
from cnncompress.terminal.console import LOG, is_main_process
from cnncompress.terminal.words import points

__all__ = [
    "CascadeStep",
    "Checkpoints",
    "FinetuneResult",
    "FinetuneSettings",
    "Lessons",
    "Origin",
    "attention_loss",
    "distillation_loss",
    "finetune",
    "is_main_process",
    "trainable",
    "trainable_modules",
]


def check_trainable(model: nn.Module) -> None:
    """UsageError for a network with quantised layers, or another state that no checkpoint holds."""
    if held := packed(model.state_dict()):
        raise UsageError(
            f"cannot train {type(model).__name__}: {next(iter(held))} is no plain tensor, as in a quantised layer, "
            "which lets no gradient through; fine-tune the network in floating point and quantise it then"
        )


def finetune(
    model: nn.Module,
    lessons: Lessons,
    settings: FinetuneSettings,
    checkpoints: Path | Checkpoints,
    *,
    device: str = "auto",
    resume: bool = False,
) -> FinetuneResult:
    """Train `model` in place; afterwards it holds the weights of the best epoch by top-1, then by loss.

    An unlabelled training has the epoch whose answers diverge least from the teacher's.

    The weights before training count as epoch 0, so the result is never worse than the start. Writes the files of
    `Checkpoints` to a folder, or as they say. With `resume`, training goes on from the last checkpoint and gives, on a
    CPU, what it would have given without the interruption. Under torchrun every process calls this. A network in half
    precision is trained in float32 and rounded at the end. For a cascade see `cascade.Cascade`.

    Raises UsageError for settings that do not fit, DataError for labels, RunError for files, CompressError where the
    loss is no longer finite. KeyboardInterrupt passes on, after the checkpoint is written.
    """
    chosen = resolve_device(device)
    settings = settings.resolved(chosen)
    check_trainable(model)
    if lessons.teacher is None and lessons.origin is not None and settings.distill != "none":
        lessons = dataclasses.replace(lessons, teacher=lessons.origin.network)
    check_teacher(lessons.teacher, settings)
    if lessons.example is None:
        example = read_batch(next(iter(make_loader(lessons.val, 1))), labels=False)[0]
        lessons = dataclasses.replace(lessons, example=example)
    kept = Checkpoints(checkpoints) if isinstance(checkpoints, Path) else checkpoints
    with one_group(chosen) as own:
        return scheduled(model, Session(lessons, settings, own), kept, resume)


def scheduled(model: nn.Module, session: Session, checkpoints: Checkpoints, resume: bool) -> FinetuneResult:
    """Train as the schedule of the settings says."""
    settings, lessons = session.settings, session.lessons
    if cascades(settings.schedule):
        return Cascade(model, origin_of(lessons, "a cascade"), session, checkpoints).run(resume)
    if settings.until_drop is not None:
        session = session.until(session.validated(origin_of(lessons, "until_drop").network))
    return train_once(model, session, checkpoints, resume)


def train_once(model: nn.Module, session: Session, checkpoints: Checkpoints, resume: bool) -> FinetuneResult:
    """Train all, or what is above the topmost decomposed layer, from the start to the end."""
    settings = session.settings
    usual = input_dtype(model)
    half = usual.itemsize < torch.float32.itemsize  # steps are smaller than half precision can tell apart
    notes = []
    with in_training(model, session.device, half):
        names, said = trainable_modules(model, session.example(model), settings.schedule)
        if said:
            LOG.info(said)
            notes.append(said)
        result = session.run(model, names, checkpoints, resume)
    if half:
        notes.append(rounded_to(usual))
        result = dataclasses.replace(result, best=session.validated(model))
    if said := ending(result, settings):
        LOG.info(said)
        notes.append(said)
    return dataclasses.replace(result, note="; ".join(filter(None, [*notes, result.note, result.uncompiled])))


def ending(result: FinetuneResult, settings: FinetuneSettings) -> str:
    """How a training ended, where that is not after its last epoch with better weights."""
    near = f"within {points(settings.until_drop or 0.0)} of the original's"
    done = len(result.history) - 1
    if not done:
        return f"top-1 was {near} before training, so nothing was trained"
    if done < settings.epochs:
        return f"top-1 is {near} after epoch {done} of {settings.epochs}, and the training ends there"
    return "no epoch was better than the start, whose weights are kept" if result.best_epoch == 0 else ""


def origin_of(lessons: Lessons, what: str) -> Origin:
    """What the network was made of; UsageError where nobody has told."""
    if lessons.origin is None:
        raise UsageError(f"{what} needs the network that this one was made of: give finetune(..., original=NETWORK)")
    return lessons.origin


def check_teacher(teacher: nn.Module | None, settings: FinetuneSettings) -> None:
    """UsageError for distillation without a teacher, and for a teacher without distillation."""
    if (teacher is None) != (settings.distill == "none"):
        raise UsageError(
            "distillation needs a teacher: give finetune(..., teacher=NETWORK), the network that this one was made of"
            if teacher is None
            else 'a teacher is for distillation: give FinetuneSettings(distill="logits") with it'
        )


def trainable(
    model: nn.Module | Compressed, schedule: str = "all", example: Tensor | None = None
) -> list[nn.Parameter]:
    """The parameters that a schedule (`all`, `upper`) trains, to give to an optimizer in a loop of your own.

    No other parameter requires gradients afterwards. The modules that train are in train mode, the others in eval mode:
    call neither `train()` nor `eval()` on the network, or this again after it. `example` [1, c, h, w] is an input,
    which a network of `load_model` or of a run knows itself.
    UsageError for an unknown schedule, where nothing would train, and without an example.
    """
    network = network_of(model)
    check_trainable(network)
    if example is None:
        known = provenance(network)
        if known is None or known.preprocessing is None:
            raise UsageError("the size of this network's input is not known; give trainable(..., example=IMAGE)")
        example = torch.zeros(1, known.preprocessing.channels, *known.preprocessing.size)
    device = next((p.device for p in network.parameters()), example.device)
    example = example.to(device, input_dtype(network))
    names, _ = trainable_modules(network, example, schedule)
    freeze_others(network, names, example)
    training_modes(network, names)()
    return [p for p in network.parameters() if p.requires_grad]
