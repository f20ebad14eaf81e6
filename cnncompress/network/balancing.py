"""Networks whose chains are scaled by what goes through them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cnncompress.chains.balance import balance, inner
from cnncompress.chains.modules import FactoredLayer
from cnncompress.network.run import inference, run


def balance_network(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Scale all chains so that the channels between two stages have the same range over some batches of inputs."""
    seen: dict[FactoredLayer, dict[int, Tensor]] = {m: {} for m in network.modules() if isinstance(m, FactoredLayer)}
    if not seen:
        return
    handles = [
        layer[i].register_forward_hook(partial(_look, ranges, i))
        for layer, ranges in seen.items()
        for i, _ in inner(layer.chain)
    ]
    try:
        with inference(network):
            for batch in batches:
                run(network, batch)
    finally:
        for handle in handles:
            handle.remove()
    for layer, ranges in seen.items():
        balance(layer, ranges)


def _look(ranges: dict[int, Tensor], place: int, module: nn.Module, args: Any, output: Tensor) -> None:
    """Raise the largest magnitudes of a stage's channels to those in a batch of its outputs."""
    axis = -1 if isinstance(module, nn.Linear) else 1
    largest = output.movedim(axis, 0).flatten(1).abs().amax(1)
    ranges[place] = torch.maximum(ranges[place], largest) if place in ranges else largest
