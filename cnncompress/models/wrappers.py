"""Networks inside others that only say how they run."""

from __future__ import annotations

import torch
from torch import nn

from cnncompress.errors import CompressError

AROUND = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.optim.swa_utils.AveragedModel)  # a `module`
COMPILED = "_orig_mod"  # what torch.compile calls the network in it, in state dicts too


def unwrap(model: nn.Module, name: str) -> nn.Module:
    """The network itself, without torch.compile, DataParallel and their like around it.

    CompressError, with the `name` that the network has, for TorchScript, which has no layers that can be replaced.
    """
    while isinstance(model, AROUND) or isinstance(getattr(model, COMPILED, None), nn.Module):
        model = next(m for inner in (COMPILED, "module") if isinstance(m := getattr(model, inner, None), nn.Module))
    if isinstance(model, torch.jit.ScriptModule):
        raise CompressError(
            f"{name} is TorchScript, which has no layers that can be replaced: return the network that it was made from"
        )
    lazy = next((n for n, p in model.named_parameters() if isinstance(p, nn.parameter.UninitializedParameter)), None)
    if lazy is not None:
        raise CompressError(f"{name} is lazy, {lazy} has no shape yet: run it on one input before it is returned")
    for module in model.modules():
        module._compiled_call_impl = None  # what `module.compile()` sets
    return model
