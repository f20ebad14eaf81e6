"""What the tests of fits in network order share."""

from __future__ import annotations

import torch
from torch import nn

from cnncompress.chains.modules import FactoredLayer
from cnncompress.correction import Correction, decompose_in_order
from cnncompress.correction.walk import walk
from cnncompress.network.graph import Runner, trace_graph
from cnncompress.network.layers import layers_of
from cnncompress.network.run import inference
from cnncompress.planning import plan
from cnncompress.statistics import collect_statistics
from tests.correction.networks import Concat, Residual, Tokens, plain

NETWORKS = {"residual": Residual, "concat": Concat, "tokens": Tokens, "plain": plain}


def planned(model, x, metric="data-covariance", rank=0.4, **request):
    """A plan, and the statistics that its metric was given."""
    statistics = collect_statistics(model, [x], metric, progress=False)
    request = {"method": "auto", "force": True, **request}
    return plan(model, x, rank=rank, metric=metric, statistics=statistics, **request), statistics


def in_order(model, found, x, statistics=None, **options):
    how = Correction(**options)
    return decompose_in_order(model, found, x, statistics=statistics, correction=how, progress=False)


def side_by_side(model, other, x):
    """A walk through both networks that visits all layers."""
    traced = trace_graph(model, x)
    with inference(model), inference(other):
        yield from walk(Runner(traced, model), Runner(traced, other), x, set(layers_of(model)))


def lost(model, small, x) -> float:
    """Squared error of the outputs, as a share of their variance."""
    with torch.no_grad():
        y = model(x)
        return float((small(x) - y).square().sum() / (y - y.mean(0)).square().sum())


def layer_values(model: nn.Module, x: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Input and output of each layer's first call, chains included."""
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def watch(name):
        def hook(module, args, output):
            found.setdefault(name, (args[0].clone(), output.clone()))

        return hook

    watched = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear | FactoredLayer)]
    handles = [module.register_forward_hook(watch(name)) for name, module in watched]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found
