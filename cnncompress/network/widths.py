"""How wide the modules of a network are with fewer channels, and whether it runs so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from cnncompress.chains.plan import Narrowed, Plan
from cnncompress.chains.spec import Call
from cnncompress.errors import CompressError
from cnncompress.maths.channels import inputs_of
from cnncompress.network.channels import Channels, Group, channel_groups
from cnncompress.network.copying import clone
from cnncompress.network.graph import trace_graph
from cnncompress.network.kinds import dense_weight, kind_of, spec_of
from cnncompress.network.layers import layers_of, refused_in_network
from cnncompress.network.narrow import chosen_of, narrow
from cnncompress.network.run import inference, run, same_outputs
from cnncompress.network.subject import Subject

FAILS = "the forward pass does not run with fewer of them, or does something else"


def narrowed_to(calls: Mapping[str, Call], counts: Mapping[Group, int], biased: bool = False) -> Plan:
    """The plan that leaves so many channels of each group; `biased` gives every layer that takes fewer a bias."""
    plan, specs = Plan(), {name: call.spec for name, call in calls.items()}
    now = dict(specs)
    for group, count in counts.items():
        for name in group.makers:
            now[name] = now[name].replace(out_channels=count)
        for name, each in group.takers.items():
            now[name] = now[name].replace(in_channels=count * each, bias=now[name].bias or biased)
        for name in group.between:
            if name in now:
                now[name] = now[name].replace(in_channels=count, out_channels=count, groups=count)
            else:
                plan.channels[name] = count
    for name, call in calls.items():
        if now[name] != specs[name]:
            plan.narrowed[name] = Narrowed(specs[name], now[name], (call.macs, call.macs_of((now[name],))))
    return plan


def channels_of(subject: Subject) -> Channels:
    """The groups of a network that it runs with fewer channels of; a forward pass shows it.

    With fewer channels it must answer as it does where the layers that take them have zeros for the others.
    """
    network, calls = subject.network, subject.calls
    layers = layers_of(network)
    fixed = set(refused_in_network(layers, calls))
    channels = channel_groups(trace_graph(network, subject.example[:1]), network, fixed)
    failing = _failing(subject, channels.groups) if channels.groups else []
    taken = {name for group in failing for name in group.takers}
    groups = tuple(group for group in channels.groups if group not in failing)
    return Channels(groups, {**channels.whole, **dict.fromkeys(taken, FAILS)})


def _failing(subject: Subject, groups: Sequence[Group]) -> list[Group]:
    """The groups of which the network does not run with fewer channels."""
    if _runs(subject, groups):
        return []
    if len(groups) == 1:
        return list(groups)
    half = len(groups) // 2
    return [*_failing(subject, groups[:half]), *_failing(subject, groups[half:])]


def _runs(subject: Subject, groups: Sequence[Group]) -> bool:
    """Whether the network with every other channel of some groups is the one with zeros for the rest of them."""
    network, image = subject.network, subject.example[:1]
    kept = {group: torch.arange(0, group.channels, 2) for group in groups}
    plan = narrowed_to(subject.calls, {group: len(index) for group, index in kept.items()})
    own = {id(p): p for p in network.parameters()}  # narrowing changes none of them
    small = narrow(clone(network, own), plan, chosen_of(plan, kept))
    whole = clone(network, own)
    for group, index in kept.items():
        for name, each in group.takers.items():
            _forget(whole.get_submodule(name), inputs_of(index, each))
    try:
        with inference(small), inference(whole):
            return same_outputs(run(small, image), run(whole, image))
    except CompressError:
        return False


def _forget(layer: nn.Module, inputs: Tensor) -> None:
    """Zeros in a layer's kernel for all but some of its inputs."""
    weight, kind = dense_weight(layer), kind_of(layer)
    kernel = torch.zeros_like(weight)
    kernel[:, inputs] = weight[:, inputs]
    bias = kind.bias(layer)
    kind.narrow(layer, spec_of(layer), kernel, None if bias is None else bias.detach())
