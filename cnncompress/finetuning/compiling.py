"""The steps of a training as compiled ones, where the compiler takes its network."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from cnncompress.errors import CompressError
from cnncompress.finetuning.batches import Batches
from cnncompress.finetuning.stepping import Stepper
from cnncompress.network.inputs import input_dtype
from cnncompress.terminal.console import LOG

ELSEWHERE = "torch.compile fails in another process"


def compile_steps(stepper: Stepper, batches: Batches, set_modes: Callable[[], None]) -> str:
    """Have the forward and backward passes of steps compiled, in all processes or in none; why in none, or "".

    They are tried on a batch of an epoch 0, from which nothing is learnt. `set_modes` puts the network in the modes of
    its training.
    """
    began = time.monotonic()
    LOG.info("compiling the training step")
    batch = batches.read(batches.of_epoch(0, 0), input_dtype(stepper.model), stepper.classes)
    reason = ""
    stepper.compile()
    set_modes()
    try:
        stepper.rehearse(batch)
    except CompressError as error:
        reason = str(error)
    failed = torch.tensor([float(bool(reason))], device=stepper.device)
    if float(stepper.accelerator.reduce(failed, "sum")):
        stepper.release()
        reason = f"{reason or ELSEWHERE}, so the training ran uncompiled"
        LOG.warning(f"warning: {reason}")
        return reason
    LOG.info(f"compiled in {time.monotonic() - began:.0f} s")
    return ""
