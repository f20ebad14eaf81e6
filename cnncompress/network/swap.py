"""The chain in a layer's place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

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


class Places:
    """Where the modules of a network stand: found in one walk over it, and kept up to date by each swap."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._of: dict[nn.Module, list[tuple[nn.Module, str]]] = {}
        self._add(model)

    def _add(self, root: nn.Module) -> None:
        for parent in root.modules():
            for child, module in parent._modules.items():
                if module is not None:
                    self._of.setdefault(module, []).append((parent, child))

    def swap(self, name: str, replacement: nn.Module) -> None:
        """Put `replacement` wherever the module called `name` stands, under all its names. Changes the network."""
        old = self._module(name)
        places = self._of.pop(old)
        _put(replacement, places)
        self._add(replacement)
        self._of.setdefault(replacement, []).extend(places)

    @contextmanager
    def swapped(self, name: str, replacement: nn.Module) -> Iterator[None]:
        """As `swap`, for a while."""
        old = self._module(name)
        _put(replacement, self._of[old])
        try:
            yield
        finally:
            _put(old, self._of[old])

    def _module(self, name: str) -> nn.Module:
        module = self.model.get_submodule(name)
        if module is self.model:
            raise UnsupportedLayerError("the network is a single layer; wrap it in a Sequential")
        return module


def _put(module: nn.Module, places: Iterable[tuple[nn.Module, str]]) -> None:
    for parent, child in places:
        setattr(parent, child, module)


def apply_plan(model: nn.Module, plan: Plan, kernels: Mapping[str, Sequence[Tensor]] | None = None) -> nn.Module:
    """Swap the chains of `plan` into `model`, in the plan's order; layers without kernels stay on the meta device."""
    places = Places(model)
    for name, layer_plan in plan.layers.items():
        original = model.get_submodule(name)
        if not is_layer(original):
            raise UnsupportedLayerError(f"{name} is a {type(original).__name__}, not a {known_kinds('or')}")
        places.swap(name, build_chain(layer_plan, kernels[name] if kernels else None, original))
    return to_memory_format(model, plan.memory_format)
