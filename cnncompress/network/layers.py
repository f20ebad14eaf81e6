"""The layers of a network, and which of them cannot be replaced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from cnncompress.chains.modules import SplitConv2d
from cnncompress.chains.spec import Call
from cnncompress.network.copying import clone as clone
from cnncompress.network.run import forward as forward
from cnncompress.network.run import logits as logits


def refuse_module(module: nn.Conv2d | nn.Linear) -> str | None:
    """Why a Conv2d or Linear cannot be swapped whatever the method, or None."""
    own: Any = type(module)
    if hasattr(module, "parametrizations"):
        return "parametrized: remove the parametrization from its weight first"
    plain = (
        own.forward is nn.Linear.forward
        if isinstance(module, nn.Linear)
        else own is SplitConv2d or (own.forward is nn.Conv2d.forward and own._conv_forward is nn.Conv2d._conv_forward)
    )
    if not plain:
        return f"{own.__name__} has a forward pass of its own"
    if module._forward_hooks or module._forward_pre_hooks:
        return "hooks are attached to it, which a chain would lose"
    if not module.weight.is_floating_point():
        return f"its weight is {module.weight.dtype}, not floating point"
    return None


def layers_of(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Every Conv2d and Linear by its first name in `named_modules`, shared modules once."""
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def refuse_in_network(name: str, modules: Mapping[str, nn.Conv2d | nn.Linear], calls: Mapping[str, Call]) -> str | None:
    """Why the network's use of a layer forbids to replace it, or None."""
    module = modules[name]
    reason = refuse_module(module)
    if reason:
        return reason
    if name not in calls:
        return "not called as a layer in the forward pass (attention uses its weight directly, or it is unused)"
    for other, candidate in modules.items():
        if other != name and candidate.weight is module.weight:
            return f"its weight is shared with {other}"
    return calls[name].kept or None
