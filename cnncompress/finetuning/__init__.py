"""Train a decomposed network: SGD or AdamW with warm-up and cosine, on one or several processes, resumable."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from cnncompress.chains.training import fold, start_training
from cnncompress.data import make_loader
from cnncompress.errors import UsageError
from cnncompress.files.state import packed
from cnncompress.finetuning.attention import attention_loss
from cnncompress.finetuning.checkpoints import Checkpoints
from cnncompress.finetuning.distillation import ATTENTION, distillation_loss, learns, tallied, teaching
from cnncompress.finetuning.learner import Learner
from cnncompress.finetuning.lessons import Lessons
from cnncompress.finetuning.schedules import freeze_others, trainable_modules, training_modes
from cnncompress.finetuning.settings import FinetuneResult, FinetuneSettings
from cnncompress.finetuning.trainer import Trainer
from cnncompress.network.compressed import Compressed, network_of
from cnncompress.network.device import resolve_device
from cnncompress.network.evaluate import summarise
from cnncompress.network.inputs import float_types, input_dtype, read_batch, with_types
from cnncompress.network.provenance import provenance
from cnncompress.network.run import forward, inference
from cnncompress.terminal.console import LOG, is_main_process

__all__ = [
    "Checkpoints",
    "FinetuneResult",
    "FinetuneSettings",
    "Lessons",
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
    precision is trained in float32 and rounded at the end.

    Raises UsageError for settings that do not fit, DataError for labels, RunError for files, CompressError where the
    loss is no longer finite. KeyboardInterrupt passes on, after the checkpoint is written.
    """
    chosen = resolve_device(device)
    settings = settings.resolved(chosen)
    check_trainable(model)
    check_teacher(lessons.teacher, settings)
    example = lessons.example
    if example is None:
        example = read_batch(next(iter(make_loader(lessons.val, 1))), labels=False)[0]
    kept = Checkpoints(checkpoints) if isinstance(checkpoints, Path) else checkpoints
    usual = input_dtype(model)
    half = usual.itemsize < torch.float32.itemsize  # steps are smaller than half precision can tell apart
    notes = []
    with in_training(model, chosen, half) as origin:
        example = example.to(origin, input_dtype(model))
        names, scheduled = trainable_modules(model, example, settings.schedule)
        if scheduled:
            LOG.info(scheduled)
            notes.append(scheduled)
        freeze_others(model, names, example)
        with inference(model):
            classes = forward(model, example[:1]).shape[-1]
        with teaching(lessons.teacher, model, chosen) as taught:
            if taught is not None:
                taught.check(example[:1].to(chosen), classes)
                if learns(settings.distill, ATTENTION):
                    taught.look(model, example[:1])
            learner = Learner(model, names, classes, taught)
            result = Trainer(learner, lessons, settings, kept, chosen).run(resume)
    if half:
        notes.append(f"trained in float32 and rounded to {str(usual).removeprefix('torch.')}")
        with teaching(lessons.teacher if settings.unlabelled else None, model, chosen) as judge:
            loader = make_loader(lessons.val, settings.batch_size)
            best = summarise(tallied(model.to(chosen), loader, judge, chosen, progress=False))
        model.to(origin)
        result = dataclasses.replace(result, best=best)
    if result.best_epoch == 0:
        unchanged = "no epoch was better than the start, whose weights are kept"
        LOG.info(unchanged)
        notes.append(unchanged)
    return dataclasses.replace(result, note="; ".join(filter(None, [*notes, result.note])))


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


@contextmanager
def in_training(model: nn.Module, device: torch.device, in_single: bool) -> Iterator[torch.device]:
    """The network in the form that it trains in, `in_single` precision where that is asked for; gives its own device.

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
        yield origin
    finally:
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)
            parameter.grad = None
        for module, training in modes:
            module.training = training
        fold(model)
        with_types(model.to(origin), types, usual)
