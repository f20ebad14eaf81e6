"""Layers whose outputs the network normalises."""

from __future__ import annotations

from torch import nn

from cnncompress.network.graph import Traced
from cnncompress.network.operations import NORMS


def normalised_layers(traced: Traced | None, network: nn.Module) -> set[str]:
    """Names of the modules whose output goes into a batch normalisation and nowhere else, at each of their calls.

    There are no names where the graph of the network is not known.
    """
    if traced is None:
        return set()
    modules = dict(network.named_modules(remove_duplicate=False))
    calls = [node for node in traced.graph.nodes if node.op == "call_module"]
    without = {
        str(node.target)
        for node in calls
        if not (len(node.users) == 1 and isinstance(modules.get(str(next(iter(node.users)).target)), NORMS))
    }
    return {str(node.target) for node in calls} - without
