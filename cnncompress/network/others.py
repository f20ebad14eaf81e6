"""Modules that compute something else than a layer: they stay, and are listed with the reason."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from cnncompress.chains.modules import FactoredLayer
from cnncompress.network.costs import OtherProfile
from cnncompress.network.kinds import is_layer, known_kinds

ITSELF = "(forward)"  # the name of the network itself among its modules
LIBRARIES = ("torch.", "torchvision.ops.")  # whose modules are known by their names


def others(model: nn.Module, macs: Mapping[str, Mapping[str, int]]) -> tuple[OtherProfile, ...]:
    """The modules that compute something else than a layer, most MACs first.

    `macs` are those of each module itself, by operator.
    """
    inside = {m for f in model.modules() if isinstance(f, FactoredLayer) for m in f.modules()}
    profiles = []
    for name, module in model.named_modules():
        if is_layer(module) or module in inside:
            continue
        own = sum(macs.get(name, {}).values())
        if own or _quantised(module):
            kind, reason = _describe(module, macs.get(name, {}))
            params = sum(p.numel() for p in module.parameters(recurse=False))
            profiles.append(OtherProfile(name or ITSELF, kind, params, own, reason))
    return tuple(sorted(profiles, key=lambda other: -other.macs))


def _quantised(module: nn.Module) -> bool:
    """True for a layer whose weight is quantised; no counter sees what it computes."""
    return "quantized" in type(module).__module__ and callable(getattr(module, "weight", None))


def _describe(module: nn.Module, macs: Mapping[str, int]) -> tuple[str, str]:
    """What a module is, and why it is not decomposed."""
    kind = type(module).__name__
    if _quantised(module):
        return f"quantised {kind}", "its weight is quantised; decompose the network before quantising it"
    if type(module).__module__.startswith(LIBRARIES) and not isinstance(module, nn.Sequential):
        return kind, f"{kind} is not decomposed, only {known_kinds('and')} are"
    if any("conv" in operator for operator in macs):
        return kind, "its forward pass convolves by itself (F.conv2d) instead of calling a Conv2d"
    return kind, "its forward pass multiplies matrices by itself (F.linear, attention) instead of calling a Linear"
