"""The layers of a network, and which of them cannot be replaced."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from cnncompress.chains.spec import Call
from cnncompress.network.kinds import is_layer, kind_of, weight_of


def refuse_module(module: nn.Module) -> str | None:
    """Why a layer cannot be swapped whatever the method, or None; UnsupportedLayerError for what is no layer."""
    kind = kind_of(module)
    if hasattr(module, "parametrizations"):
        return "parametrized: remove the parametrization from its weight first"
    own = vars(module).keys() & {"forward", "_conv_forward"} or type(module).__call__ is not nn.Module.__call__
    if own or not kind.is_plain(module):
        return f"{type(module).__name__} has a forward pass of its own"
    if module._forward_hooks or module._forward_pre_hooks:
        return "hooks are attached to it, which a chain would lose"
    weight = kind.parameter(module)
    if not weight.is_floating_point():
        return f"its weight is {weight.dtype}, not floating point"
    return None


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """Every layer of a known kind by its first name in `named_modules`, shared modules once."""
    return {name: m for name, m in model.named_modules() if is_layer(m)}


def refuse_in_network(name: str, modules: Mapping[str, nn.Module], calls: Mapping[str, Call]) -> str | None:
    """Why the network's use of a layer forbids to replace it, or None."""
    module = modules[name]
    reason = refuse_module(module)
    if reason:
        return reason
    if name not in calls:
        return "not called as a layer in the forward pass (attention uses its weight directly, or it is unused)"
    for other, candidate in modules.items():
        if other != name and weight_of(candidate) is weight_of(module):
            return f"its weight is shared with {other}"
    return calls[name].kept or None
