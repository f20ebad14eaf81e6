"""The chain in a layer's place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from cnncompress.chains.modules import FactoredLayer
from cnncompress.chains.plan import LayerPlan, Plan
from cnncompress.errors import UnsupportedLayerError
from cnncompress.network.kinds import is_layer, kind_of, known_kinds
from cnncompress.network.memory_format import is_channels_last, to_memory_format


def build_chain(plan: LayerPlan, kernels: Sequence[Tensor] | None, original: nn.Module) -> FactoredLayer:
    """The chain of `plan` with these kernels, in the original layer's dtype, device, memory format and mode.

    One tensor a stage of the plan's chain; `kernels` None leaves the chain without values, on the meta device.
    """
    kind = kind_of(original)
    weight, bias = kind.parameter(original), kind.bias(original)
    layer = FactoredLayer(plan.chain, plan.lowering, device="meta", dtype=weight.dtype)
    if kernels is not None:
        layer = layer.to_empty(device=weight.device)
        layer.write_kernels(kernels)
        if bias is not None:
            layer.add_to_bias(bias.detach())
        if weight.dim() == 4 and is_channels_last(weight):
            layer = layer.to(memory_format=torch.channels_last)
    layer.requires_grad_(weight.requires_grad)
    layer.stand_in_for(original)
    return layer.train(original.training)


def swap(model: nn.Module, name: str, replacement: nn.Module) -> None:
    """Put `replacement` wherever the module called `name` stands, under all its names. Changes `model`."""
    old = model.get_submodule(name)
    if old is model:
        raise UnsupportedLayerError("the network is a single layer; wrap it in a Sequential")
    for parent in list(model.modules()):
        for child, module in list(parent._modules.items()):
            if module is old:
                setattr(parent, child, replacement)


def apply_plan(model: nn.Module, plan: Plan, kernels: Mapping[str, Sequence[Tensor]] | None = None) -> nn.Module:
    """Swap the chains of `plan` into `model`, in the plan's order; layers without kernels stay on the meta device."""
    for name, layer_plan in plan.layers.items():
        original = model.get_submodule(name)
        if not is_layer(original):
            raise UnsupportedLayerError(f"{name} is a {type(original).__name__}, not a {known_kinds('or')}")
        swap(model, name, build_chain(layer_plan, kernels[name] if kernels else None, original))
    return to_memory_format(model, plan.memory_format)
