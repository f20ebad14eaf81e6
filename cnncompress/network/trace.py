"""How a network calls its layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cnncompress.chains.spec import Call
from cnncompress.errors import CompressError
from cnncompress.network.kinds import called_with, kind_of, spec_of
from cnncompress.network.layers import layers_of
from cnncompress.network.run import inference, run


def trace(model: nn.Module, example: Tensor) -> dict[str, Call]:
    """How the network uses its layers on the first image of `example`, in the order of first calls.

    A layer that is not in the result is not called as a module (its weight may be used directly, as attention does).
    CompressError if the forward pass fails, and for TorchScript, whose layers cannot be replaced.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise CompressError("TorchScript has no layers that can be replaced: give the network that it was made from")
    layers = layers_of(model)
    sizes: dict[str, list[tuple[int, int]]] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            sizes.setdefault(name, []).extend(kind_of(module).sizes(called_with(args, kwargs)))

        return hook

    handles = [module.register_forward_pre_hook(watch(name), with_kwargs=True) for name, module in layers.items()]
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused transformer layers are invisible to hooks
    try:
        with inference(model):
            run(model, example[:1])
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for handle in handles:
            handle.remove()
    return {n: Call(i, spec_of(layers[n]), tuple(s)) for i, (n, s) in enumerate(sizes.items())}
