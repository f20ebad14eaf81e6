"""What becomes of a layer's output, as the graph of a network shows it."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional

from cnncompress.network.kinds import is_layer

ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}
RELU = {torch.relu, torch.relu_, functional.relu, functional.relu_, "relu", "relu_"}


@dataclass(frozen=True)
class Following:
    """What becomes of a layer's output: batch normalisation, an addition of `partner`, a rectification, in this order.

    Each is missing where it does not come next or where its input goes elsewhere too.
    """

    norm: nn.BatchNorm2d | None = None
    partner: fx.Node | None = None
    rectified: bool = False


def following(node: fx.Node, modules: Mapping[str, nn.Module]) -> Following:
    """What follows a layer; nothing for another node. A partner does not depend on the layer."""
    if node.op != "call_module" or not is_layer(modules[str(node.target)]):
        return Following()
    start, norm, partner = node, None, None
    after = _only_user(node)
    if after is not None and after.op == "call_module":
        module = modules[str(after.target)]
        if isinstance(module, nn.BatchNorm2d):
            norm, node, after = module, after, _only_user(after)
    if after is not None and after.target in ADDITIONS and not after.kwargs:
        others = [a for a in after.args if isinstance(a, fx.Node) and a is not node]
        if len(others) != 1 or depends(others[0], start):
            return Following(norm)
        partner, after = others[0], _only_user(after)
    return Following(norm, partner, after is not None and _is_relu(after, modules))


def depends(node: fx.Node, on: fx.Node) -> bool:
    """Whether the value of `node` is computed from that of `on`."""
    seen, stack = set(), [node]
    while stack:
        current = stack.pop()
        if current is on:
            return True
        if current not in seen:
            seen.add(current)
            stack.extend(current.all_input_nodes)
    return False


def _is_relu(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], nn.ReLU)
    return node.target in RELU


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
