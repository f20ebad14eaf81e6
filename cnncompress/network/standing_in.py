"""Whether a chain can replace a layer: it cannot where the forward pass does more with the layer than calling it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from cnncompress.chains.modules import FactoredLayer, ValueReadError
from cnncompress.chains.spec import Call
from cnncompress.errors import CompressError
from cnncompress.network.copying import clone
from cnncompress.network.kinds import is_layer, spec_of, weight_of
from cnncompress.network.layers import layers_of, refuse_module
from cnncompress.network.run import inference, run, same_outputs
from cnncompress.network.swap import Places
from cnncompress.network.trace import trace

READS_WEIGHT = "the forward pass reads its weight or bias instead of only calling it"
PASSED_BY = "the forward pass calls it by a reference of its own (in a list, say), which a chain would not replace"
USES_ATTRIBUTE = "the forward pass uses an attribute of it that a chain does not have"
OUTPUTS_CHANGE = "with a chain in its place that computes the same, the network's outputs change"


def examine(model: nn.Module, example: Tensor, calls: Mapping[str, Call] | None = None) -> dict[str, Call]:
    """The calls of the layers as `trace` finds them, with the reason where no chain can stand in a layer's place.

    Every layer is replaced by a chain of itself alone. The network's outputs on the first image of `example` must not
    change by that. `calls` are those of an earlier trace; by default the network is traced.
    """
    calls = trace(model, example) if calls is None else calls
    layers = layers_of(model)
    names = [name for name in calls if layers[name] is not model and refuse_module(layers[name]) is None]
    trial = _Trial(model, example[:1])
    trial.refused(names)
    reasons = {**trial.reasons, **_shared(model, {name: layers[name] for name in names})}
    return {name: dataclasses.replace(call, kept=reasons.get(name, "")) for name, call in calls.items()}


def _shared(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """The reason for each layer that shares its weight with a module of another kind."""
    owners = {
        id(p): f"{prefix}.{name}".lstrip(".")
        for prefix, module in model.named_modules()
        if not is_layer(module)
        for name, p in module._parameters.items()
    }
    sharing = {name: owners.get(id(weight_of(layer))) for name, layer in layers.items()}
    return {name: f"its weight is shared with {owner}" for name, owner in sharing.items() if owner}


class _Trial:
    """Runs a network in which some layers are replaced by chains of themselves."""

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        self.model, self.image = model, image
        self.expected: Any = None
        self.reasons: dict[str, str] = {}
        with inference(model):
            self.expected = run(model, image)

    def refused(self, names: Sequence[str]) -> list[str]:
        """The layers among `names` that no chain can replace; their `reasons` are recorded.

        Layers are tried together and halved where the outputs differ.
        """
        reason = self.reason(names) if names else None
        if reason is None or (reason == OUTPUTS_CHANGE and self.reason([]) is not None):  # no two passes are the same
            return []
        if len(names) == 1:
            self.reasons[names[0]] = reason
            return list(names)
        half = len(names) // 2
        return [*self.refused(names[:half]), *self.refused(names[half:])]

    def reason(self, names: Sequence[str]) -> str | None:
        """Why the outputs are not the same with these layers in chains, or None where they are."""
        work = clone(self.model, {id(p): p for p in self.model.parameters()})
        places, called = Places(work), Counter[nn.Module]()
        layers = [work.get_submodule(name) for name in names]
        chains = [_alone(layer) for layer in layers]
        for name, layer, chain in zip(names, layers, chains, strict=True):
            places.swap(name, chain)
            for module in (layer, chain):
                module.register_forward_pre_hook(lambda module, args: called.update([module]))
        try:
            with inference(work):
                outputs = run(work, self.image)
        except ValueReadError:
            return READS_WEIGHT
        except CompressError as error:
            return READS_WEIGHT if isinstance(error.__cause__, ValueReadError) else USES_ATTRIBUTE
        if not same_outputs(outputs, self.expected):
            return OUTPUTS_CHANGE
        alike = (called[layer] == called[chain] > 0 for layer, chain in zip(layers, chains, strict=True))
        return None if all(alike) else PASSED_BY


def _alone(layer: Any) -> FactoredLayer:
    """A chain that consists of the layer itself."""
    chain = FactoredLayer((spec_of(layer),), device="meta")
    chain[0] = layer
    chain.stand_in_for(layer)
    return chain.train(layer.training)
