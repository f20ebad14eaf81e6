"""Running statistics of batch normalisation, taken again from the compressed network."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cnncompress.network.copying import clone
from cnncompress.network.inputs import input_dtype
from cnncompress.network.run import inference, run


def reestimate(model: nn.Module, images: Tensor) -> nn.Module | None:
    """A copy whose batch normalisations have the mean and variance of what they see on `images` [n, 3, h, w].

    They are set in the order of the forward pass, each one from inputs that the ones before it have made. None where
    the network has none with running statistics.
    """
    model = clone(model)
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        return None

    found: dict[Any, tuple[Tensor, Tensor]] = {}

    def hook(module: Any, args: tuple[Tensor, ...]) -> None:
        rows = args[0].transpose(0, 1).flatten(1).double()
        if rows.shape[1] > 1:  # one value has no variance
            found[module] = rows.mean(1), rows.var(1)
            put(module)

    def put(module: Any) -> None:
        module.running_mean.copy_(found[module][0])
        module.running_var.copy_(found[module][1])

    handles = [norm.register_forward_pre_hook(hook) for norm in norms]
    try:
        with inference(model):
            run(model, images.to(input_dtype(model)))
    finally:
        for handle in handles:
            handle.remove()
    for norm in found:  # a forward pass leaves buffers as they were
        put(norm)
    return model
