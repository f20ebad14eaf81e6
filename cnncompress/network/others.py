"""What a network computes beside its layers: it stays as it is, and is named with the reason."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from cnncompress.chains.modules import FactoredLayer
from cnncompress.network.costs import OtherProfile
from cnncompress.network.kinds import is_layer, known_kinds

ITSELF = "(forward)"  # the name of the network itself among its modules
LIBRARIES = ("torch.", "torchvision.ops.")  # whose modules are known by their names


def others(model: nn.Module, macs: Mapping[str, Mapping[str, int]]) -> tuple[OtherProfile, ...]:
    """The modules that compute something else, most MACs first, from what each computes itself by operator."""
    inside = {m for f in model.modules() if isinstance(f, FactoredLayer) for m in f.modules()}
    found = []
    for name, module in model.named_modules():
        if is_layer(module) or module in inside:
            continue
        own = sum(macs.get(name, {}).values())
        if own or _quantised(module):
            kind, reason = _describe(module, macs.get(name, {}))
            params = sum(p.numel() for p in module.parameters(recurse=False))
            found.append(OtherProfile(name or ITSELF, kind, params, own, reason))
    return tuple(sorted(found, key=lambda other: -other.macs))


def _quantised(module: nn.Module) -> bool:
    """True for a layer whose weight is quantised; no counter sees what it computes."""
    return "quantized" in type(module).__module__ and callable(getattr(module, "weight", None))


def _describe(module: nn.Module, macs: Mapping[str, int]) -> tuple[str, str]:
    """What a module is, and why it is not decomposed."""
    kind = type(module).__name__
    if _quantised(module):
        return f"quantised {kind}", "its weight is quantised; decompose the network first and quantise it then"
    if type(module).__module__.startswith(LIBRARIES) and not isinstance(module, nn.Sequential):
        return kind, f"{kind} is not decomposed, only {known_kinds('and')} are"
    if any("conv" in operator for operator in macs):
        return kind, "its forward pass convolves with tensors of its own (F.conv2d), not by a Conv2d"
    return kind, "its forward pass multiplies matrices itself (F.linear, attention), not by a Linear"
