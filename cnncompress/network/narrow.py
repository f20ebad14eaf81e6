"""A network with fewer channels: the layers and normalisations of a plan, narrowed where they stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from cnncompress.chains.plan import Narrowed, Plan
from cnncompress.errors import UnsupportedLayerError
from cnncompress.maths.channels import inputs_of
from cnncompress.network.channels import Group
from cnncompress.network.copying import clone
from cnncompress.network.costs import Profile
from cnncompress.network.kinds import dense_weight, is_layer, kind_of, spec_of
from cnncompress.network.operations import numbers_a_channel
from cnncompress.network.profile import profile
from cnncompress.network.subject import Subject


@dataclass(frozen=True)
class Chosen:
    """Which channels of a module stay: its inputs and its outputs, int64 in the order in which they come."""

    inputs: Tensor
    outputs: Tensor

    @classmethod
    def first(cls, inputs: int, outputs: int) -> Chosen:
        """The first ones."""
        return cls(torch.arange(inputs), torch.arange(outputs))


def chosen_of(plan: Plan, kept: Mapping[Group, Tensor]) -> dict[str, Chosen]:
    """The channels that stay of every module that a plan narrows, by those kept of each group."""
    chosen = {name: Chosen.first(n.spec.in_channels, n.spec.out_channels) for name, n in plan.narrowed.items()}
    for group, index in kept.items():
        chosen |= {name: replace(chosen[name], outputs=index) for name in group.makers}
        chosen |= {name: Chosen(index, index) for name in group.between}
        chosen |= {name: replace(chosen[name], inputs=inputs_of(index, each)) for name, each in group.takers.items()}
    return chosen


def narrow(model: nn.Module, plan: Plan, chosen: Mapping[str, Chosen] | None = None) -> nn.Module:
    """The network itself, its layers and modules narrowed as `plan` says: to the channels `chosen`, or the first ones.

    What remains has its values; a bias that is new is zero. UnsupportedLayerError where the network has other modules
    than the plan.
    """
    for name, narrowed in plan.narrowed.items():
        layer = _module(model, name)
        if not is_layer(layer) or spec_of(layer) != narrowed.spec:
            here = spec_of(layer) if is_layer(layer) else type(layer).__name__
            raise UnsupportedLayerError(f"{name} is {here}, and {narrowed.spec} in the plan")
        _narrow_layer(layer, narrowed, (chosen or {}).get(name) or Chosen.first(*narrowed.rank))
    for name, count in plan.channels.items():
        module = _module(model, name)
        have = numbers_a_channel(module) or 0
        if have < count:
            raise UnsupportedLayerError(f"{name} has numbers for {have} channels, and for {count} in the plan")
        kept = chosen[name].outputs if chosen else torch.arange(count)
        _narrow_numbers(module, kept, have)
    return model


def narrowed_cost(subject: Subject, plan: Plan) -> Profile:
    """What a network costs once it is narrowed as a plan says, without the plan's chains."""
    if not plan.narrowed:
        return subject.cost
    own = {id(p): p for p in subject.network.parameters()}  # narrowing changes none of them
    return profile(narrow(clone(subject.network, own), plan), subject.example)


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise UnsupportedLayerError(f"the network has no module {name}, which the plan narrows") from None


def _narrow_layer(layer: nn.Module, narrowed: Narrowed, chosen: Chosen) -> None:
    kind = kind_of(layer)
    bias = kind.bias(layer)
    kernel = dense_weight(layer)[chosen.outputs]
    kernel = kernel if narrowed.spec.depthwise else kernel[:, chosen.inputs]
    if kernel.shape != narrowed.now.weight_shape:
        raise UnsupportedLayerError(f"a kernel {tuple(kernel.shape)} is left, and {narrowed.now} is in the plan")
    shift = kernel.new_zeros(len(kernel)) if narrowed.now.bias else None
    kind.narrow(layer, narrowed.now, kernel, shift if bias is None else bias.detach()[chosen.outputs])


def _narrow_numbers(module: nn.Module, kept: Tensor, have: int) -> None:
    """Leave a normalisation or PReLU with the numbers of the channels kept."""
    for name, parameter in list(module._parameters.items()):
        if parameter is not None and parameter.shape == (have,):
            setattr(module, name, nn.Parameter(parameter.detach()[kept], parameter.requires_grad))
    for name, buffer in list(module._buffers.items()):
        if buffer is not None and buffer.shape == (have,):
            setattr(module, name, buffer[kept])
    counter = "num_parameters" if isinstance(module, nn.PReLU) else "num_features"
    setattr(module, counter, len(kept))
