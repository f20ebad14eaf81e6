"""The chains of a network in the form that they train in, and back in the one that is stored."""

from __future__ import annotations

import copy

from torch import nn

from cnncompress.chains.modules import FactoredLayer


def start_training(network: nn.Module) -> None:
    """Give every stage of every chain the parameters that it trains with; the network computes the same."""
    for layer in _chains(network):
        if not layer.in_training_form:
            layer.start_training()


def fold(network: nn.Module) -> None:
    """Give every chain the tensors that are stored again, with the values that training gave them."""
    for layer in _chains(network):
        if layer.in_training_form:
            layer.fold()


def folded(network: nn.Module) -> nn.Module:
    """The network as it is stored: itself, or a folded copy where some of its chains are in their training form."""
    if not any(layer.in_training_form for layer in _chains(network)):
        return network
    network = copy.deepcopy(network)
    fold(network)
    return network


def _chains(network: nn.Module) -> list[FactoredLayer]:
    return [module for module in network.modules() if isinstance(module, FactoredLayer)]
