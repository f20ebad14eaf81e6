"""The layers of a network, and which of them cannot be replaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


def refused_in_network(modules: Mapping[str, nn.Module], calls: Mapping[str, Call]) -> dict[str, str]:
    """The layers of a network that cannot be replaced, with what forbids it: what they are or how they are used."""
    weights = {name: weight_of(module) for name, module in modules.items()}
    owners: dict[nn.Parameter, list[str]] = {}
    for name, weight in weights.items():
        owners.setdefault(weight, []).append(name)
    reasons = {}
    for name, module in modules.items():
        others = [other for other in owners[weights[name]] if other != name]
        if reason := refuse_module(module) or _refused_use(calls.get(name), others):
            reasons[name] = reason
    return reasons


def _refused_use(call: Call | None, others: Sequence[str]) -> str:
    """Why the use of a layer, whose weight `others` have too, forbids to replace it; empty where it does not."""
    if call is None:
        return "not called as a layer in the forward pass (attention uses its weight directly, or it is unused)"
    return f"its weight is shared with {others[0]}" if others else call.kept
