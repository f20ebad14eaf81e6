"""Running statistics of batch normalisation, taken again from the compressed network."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cnncompress.network.copying import clone
from cnncompress.network.inputs import input_dtype
from cnncompress.network.run import inference, run

Moments = tuple[Tensor, Tensor]  # means and variances of channels


def reestimate(model: nn.Module, images: Tensor) -> nn.Module | None:
    """A copy whose batch normalisations have the mean and variance of what they see on `images` [n, 3, h, w].

    They are set in the order of the forward pass, each one from inputs that the ones before it have made. None where
    the network has none with running statistics.
    """
    model = clone(model)
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        return None

    measured: dict[nn.Module, Moments] = {}
    handles = [norm.register_forward_pre_hook(partial(_measure, measured)) for norm in norms]
    try:
        with inference(model):
            run(model, images.to(input_dtype(model)))
    finally:
        for handle in handles:
            handle.remove()
    for norm, moments in measured.items():  # a forward pass leaves buffers as they were
        _put(norm, moments)
    return model


def _measure(measured: dict[nn.Module, Moments], norm: nn.Module, args: tuple[Tensor, ...]) -> None:
    """Take the mean and variance of each channel of a normalisation's input [n, c, ...], and normalise with them."""
    rows = args[0].transpose(0, 1).flatten(1).double()
    if rows.shape[1] > 1:  # one value has no variance
        measured[norm] = rows.mean(1), rows.var(1)
        _put(norm, measured[norm])


def _put(norm: Any, moments: Moments) -> None:
    norm.running_mean.copy_(moments[0])
    norm.running_var.copy_(moments[1])
