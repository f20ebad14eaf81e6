"""Whether a chain can stand in the place of a layer: what a forward pass asks of its layers beside calling them."""

from __future__ import annotations

import dataclasses
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
from cnncompress.network.swap import swap
from cnncompress.network.trace import trace

READ = "the forward pass computes with its weight or bias itself, beside or instead of calling it"
ASKED = "the forward pass asks of it what a chain does not have"
OTHERWISE = "the forward pass goes another way where a chain stands in its place"


def examine(model: nn.Module, example: Tensor, calls: Mapping[str, Call] | None = None) -> dict[str, Call]:
    """The calls of the layers as `trace` finds them, with the reason where no chain can stand in a layer's place.

    Every layer is put into a chain of itself alone. That must change nothing: on the first image of `example` the
    network gives what it gave before. `calls` are those of an earlier trace, by default found now.
    """
    calls = trace(model, example) if calls is None else calls
    layers = layers_of(model)
    names = [name for name in calls if layers[name] is not model and refuse_module(layers[name]) is None]
    trial = _Trial(model, example[:1])
    trial.refused(names)
    reasons = {**trial.reasons, **_shared(model, {name: layers[name] for name in names})}
    return {name: dataclasses.replace(call, kept=reasons.get(name, "")) for name, call in calls.items()}


def _shared(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """Which of the layers have a weight that a module of another kind has, too."""
    owners = {
        id(p): f"{prefix}.{name}".lstrip(".")
        for prefix, module in model.named_modules()
        if not is_layer(module)
        for name, p in module._parameters.items()
    }
    found = {name: owners.get(id(weight_of(layer))) for name, layer in layers.items()}
    return {name: f"its weight is shared with {owner}" for name, owner in found.items() if owner}


class _Trial:
    """Runs a network with some layers inside chains of themselves."""

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        self.model, self.image = model, image
        self.expected: Any = None
        self.reasons: dict[str, str] = {}
        with inference(model):
            self.expected = run(model, image.clone())

    def refused(self, names: Sequence[str]) -> list[str]:
        """Those of some layers that no chain can stand in for; their `reasons` are then known."""
        reason = self.reason(names) if names else None
        if reason is None or (reason == OTHERWISE and self.reason([]) is not None):  # no two passes are the same
            return []
        if len(names) == 1:
            self.reasons[names[0]] = reason
            return list(names)
        half = len(names) // 2
        return [*self.refused(names[:half]), *self.refused(names[half:])]

    def reason(self, names: Sequence[str]) -> str | None:
        """Why the network is not the same with these layers in chains, or None where it is."""
        work = clone(self.model, {id(p): p for p in self.model.parameters()})
        for name in names:
            swap(work, name, _alone(work.get_submodule(name)))
        try:
            with inference(work):
                found = run(work, self.image.clone())
        except ValueReadError:
            return READ
        except CompressError as error:
            return READ if isinstance(error.__cause__, ValueReadError) else ASKED
        return None if same_outputs(found, self.expected) else OTHERWISE


def _alone(layer: Any) -> FactoredLayer:
    """A chain that consists of the layer itself."""
    chain = FactoredLayer((spec_of(layer),), device="meta")
    chain[0] = layer
    chain.stand_in_for(layer)
    return chain.train(layer.training)
