"""Schedules: the modules of a decomposed network that train, and those that stay as they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cnncompress.chains.modules import FactoredLayer
from cnncompress.errors import UsageError, nearest
from cnncompress.names.schedules import SCHEDULES
from cnncompress.network.run import forward, inference, run


def first_calls(model: nn.Module, example: Tensor) -> dict[nn.Module, int]:
    """The position of every module in the order of first calls (the network itself is 0) on `example` [n, 3, H, W].

    A module that is not called itself, or is a script, has the position of the nearest module around it that is not.
    """
    calls: dict[nn.Module, int] = {}

    def watch(module: nn.Module, args: Any) -> None:
        calls.setdefault(module, len(calls))

    watched = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    handles = [module.register_forward_pre_hook(watch) for module in watched]
    try:
        with inference(model):
            run(model, example)
    finally:
        for handle in handles:
            handle.remove()
    for name, module in model.named_modules():  # parents come before children
        parent = model.get_submodule(name.rpartition(".")[0])
        calls.setdefault(module, calls[parent])
    return calls


def _units(model: nn.Module, calls: dict[nn.Module, int], after: int = -1) -> list[nn.Module]:
    """The modules without children and those that own parameters, first called later than `after`, in that order."""
    units = [m for m in model.modules() if _owns(m) or not any(m.children())]
    return sorted((m for m in units if calls[m] > after), key=calls.__getitem__)


def _owns(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None


def _end(layer: nn.Module, calls: dict[nn.Module, int]) -> int:
    """The position of the last module of a layer."""
    return max(calls[m] for m in layer.modules())


def modules_above(model: nn.Module, example: Tensor, layers: Iterable[str]) -> list[str]:
    """Names of the modules that are first called after all of `layers` on `example` [n, 3, H, W], in that order.

    None where no parameters are among them.
    """
    calls = first_calls(model, example)
    above = _units(model, calls, max(_end(model.get_submodule(name), calls) for name in layers))
    names = {m: n for n, m in model.named_modules()}
    return [names[m] for m in above] if any(map(_owns, above)) else []


def trainable_modules(model: nn.Module, example: Tensor, schedule: str) -> tuple[list[str], str]:
    """Names of the modules that train, in the order of first calls on `example` [n, 3, H, W], and a note or "".

    Modules are those without children and those that own parameters. `all`: every one of them. `upper` (Denton et
    al. 2014, section 3.5): those first called after the topmost decomposed layer. Where nothing with parameters is
    left above it, those after the first decomposed layer, and the note says so.

    Raises UsageError for an unknown schedule, `upper` without a decomposed layer, and where nothing would train.
    """
    if schedule not in ("all", "upper"):
        raise UsageError(f"unknown schedule '{schedule}'{nearest(schedule, SCHEDULES) or '; give all or upper'}")
    calls = first_calls(model, example)
    names = {m: n for n, m in model.named_modules()}
    note, chosen = "", _units(model, calls)
    if schedule == "upper":
        layers = [m for m in names if isinstance(m, FactoredLayer)]
        if not layers:
            raise UsageError("--schedule upper needs a decomposed layer and the network has none; give --schedule all")
        ends = {layer: _end(layer, calls) for layer in layers}
        first, top = min(layers, key=ends.__getitem__), max(layers, key=ends.__getitem__)
        chosen = _units(model, calls, ends[top])
        if not any(map(_owns, chosen)):
            chosen = _units(model, calls, ends[first])
            note = (
                f"the topmost decomposed layer, {names[top]}, is the last one with parameters: "
                f"everything after the first decomposed layer, {names[first]}, trains instead"
            )
    if not any(map(_owns, chosen)):
        raise UsageError(
            f"--schedule {schedule} leaves nothing to train; give --schedule all on a network with weights"
        )
    return [names[m] for m in chosen], note


def freeze_others(model: nn.Module, names: Iterable[str], example: Tensor) -> None:
    """Let exactly the parameters that the modules `names` own, and that the logits depend on, require gradients.

    A parameter that a frozen module shares stays frozen. Those the logits of `example` do not depend on (auxiliary
    heads) would never get a gradient, for which distributed training waits.
    """
    chosen = {model.get_submodule(name) for name in names}
    frozen = {p for m in model.modules() if m not in chosen for p in m.parameters(recurse=False)}
    for parameter in model.parameters():
        parameter.requires_grad_(parameter not in frozen and parameter.is_floating_point())
    parameters = [p for p in model.parameters() if p.requires_grad]
    with inference(model), torch.enable_grad():
        answers = forward(model, example[:1])
        if not answers.requires_grad:
            raise UsageError(
                f"{type(model).__name__} computes its answers without gradients (torch.no_grad does that): nothing "
                "can be trained"
            )
        gradients = torch.autograd.grad(answers.sum(), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)


def knows(loss: float, classes: int) -> bool:
    """Whether a network has learnt something: its validation loss, in nats, is below half of that of a guess.

    Such a network was fitted to the statistics of its batch normalisations. Those of augmented images and small batches
    would move them further in one epoch than the weights can make good. Those of a network with random layers mean
    nothing yet.
    """
    return loss < 0.5 * math.log(classes)


def training_modes(model: nn.Module, names: Iterable[str], freeze_bn: bool = False) -> Callable[[], None]:
    """A function that puts the modules `names`, and those around them, in train mode and all others in eval mode.

    With `freeze_bn`, batch normalisations are in eval mode too: they use their statistics and leave them as they are.
    """
    chosen = {model.get_submodule(name) for name in names}
    frozen = {m for m in model.modules() if freeze_bn and isinstance(m, _BatchNorm)}
    modes = [(m, m not in frozen and any(inner in chosen for inner in m.modules())) for m in model.modules()]

    def apply() -> None:
        for module, training in modes:
            module.training = training

    return apply
