"""Torch-Pruning 1.6: whole channels are removed, by several importances, ranked in a layer or over the network.

Pruned in small steps until the MACs are met. Magnitudes (L2 of the group, L1 of the filters, BatchNorm's scale, LAMP,
geometric median) come from the weights; Taylor and Hessian importances from gradients of the loss on labelled
calibration images, also renewed every five steps (`again`); `raw` means without the division by a group's mean, which
hides from a global ranking how much a group matters. Where the network's residual channels cannot be pruned (padded
shortcuts), only the channels inside the blocks are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch_pruning as tp
from benchlib import Batches
from torch import nn
from torch.nn import functional as F

import cnncompress as cc
from cnncompress.network.layers import layers_of
from peers.shared import TOLERANCE, Make, Task, has_batchnorm

STEPS = 100
LARGEST = 0.97  # share of the channels that the last step would remove
GRADIENTS = 250  # images for gradients
RENEW = 5  # steps
Importance = Callable[[], Any]


def magnitude(**options: Any) -> Importance:
    """Importance from the weights."""
    return partial(tp.importance.GroupMagnitudeImportance, **options)


WEIGHTS: dict[str, Importance] = {
    "L2 of groups": magnitude(),
    "L2 of groups raw": magnitude(normalizer=None),
    "L1 of filters": magnitude(p=1, group_reduction="first"),
    "L1 of filters raw": magnitude(p=1, group_reduction="first", normalizer=None),
    "LAMP": tp.importance.LAMPImportance,
    "FPGM": tp.importance.FPGMImportance,
}
SCALE: dict[str, Importance] = {"BatchNorm scale raw": partial(tp.importance.BNScaleImportance, normalizer=None)}
SLOPES: dict[str, Importance] = {
    "Taylor": tp.importance.GroupTaylorImportance,
    "Taylor raw": partial(tp.importance.GroupTaylorImportance, normalizer=None, group_reduction="sum"),
    "Hessian": tp.importance.GroupHessianImportance,
    "Hessian raw": partial(tp.importance.GroupHessianImportance, normalizer=None, group_reduction="sum"),
}


def variants(task: Task) -> Iterator[tuple[str, Make, float]]:
    """(Name, what makes the network, 0) of each way to use the tool."""
    ways = WEIGHTS | (SCALE if has_batchnorm(task.bench.model) else {}) | SLOPES
    for name, importance in ways.items():
        slopes = name if name in SLOPES else ""
        if not name.endswith("raw") or name in SCALE:  # in one layer the scale of the scores does not matter
            yield f"{name}, local", partial(prune, task, importance, "local", slopes), 0.0
        yield f"{name}, global", partial(prune, task, importance, "global", slopes), 0.0
        if slopes and name.endswith("raw"):
            yield f"{name}, global, again", partial(prune, task, importance, "global", slopes, True), 0.0


def prune(task: Task, importance: Importance, ranking: str, slopes: str = "", again: bool = False) -> nn.Module:
    """A copy of the network that is pruned until it is within the budget."""
    network = copy.deepcopy(task.bench.model)
    positions = {x.layer: x.macs / x.spec.weights for x in cc.profile(network, task.bench.example).layers}
    most = (task.budget + TOLERANCE) * task.macs
    pruner = tp.pruner.BasePruner(
        network,
        task.bench.example,
        importance(),
        global_pruning=ranking == "global",
        pruning_ratio=LARGEST,
        iterative_steps=STEPS,
        ignored_layers=fixed_layers(network, task),
    )
    for step in range(STEPS):
        if slopes and (step % RENEW == 0 if again else step == 0):
            fill_gradients(network, task.bench.calibration, slopes.startswith("Hessian"))
        for group in pruner.step(interactive=True):
            group.prune()
            layers = layers_of(network)  # no map changes its size, so the weights give the MACs
            if sum(n * layers[name].weight.numel() for name, n in positions.items()) <= most:
                network.zero_grad()
                return network.eval()
    raise ValueError(f"pruning stops at {task.share(network):.3f} of the MACs")


def fixed_layers(network: nn.Module, task: Task) -> list[nn.Module]:
    """The classifier, and layers whose output channels are tied to other layers' if such a network cannot be pruned."""
    last = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)][-1]
    trial = copy.deepcopy(network)
    end = [m for m in trial.modules() if isinstance(m, nn.Conv2d | nn.Linear)][-1]
    tp.pruner.BasePruner(
        trial, task.bench.example, tp.importance.MagnitudeImportance(), pruning_ratio=0.3, ignored_layers=[end]
    ).step()
    try:
        with torch.no_grad():
            trial(task.bench.example)
        return [last]
    except RuntimeError:
        graph = tp.DependencyGraph().build_dependency(network, example_inputs=task.bench.example)
        tied = []
        for group in graph.get_all_groups(ignored_layers=[last]):
            roots = [d.target.module for d, _ in group if graph.is_out_channel_pruning_fn(d.handler)]
            layers = [m for m in roots if isinstance(m, nn.Conv2d | nn.Linear)]
            tied += layers if len(layers) > 1 else []
        return [last, *tied]


def fill_gradients(network: nn.Module, batches: Batches, squared: bool) -> None:
    """Put the gradient of the mean loss into the parameters, or the mean square of single images' gradients.

    The library's own accumulation of squares keeps only the last image's, since it looks parameters up by name.
    """
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    picked = torch.linspace(0, len(x) - 1, GRADIENTS).long().unique()
    network.eval()
    network.zero_grad()
    sums = {p: torch.zeros_like(p) for p in network.parameters()}
    for part in picked.split(1 if squared else len(batches[0][0])):
        network.zero_grad()
        F.cross_entropy(network(x[part]), y[part], reduction="sum").backward()
        for p, total in sums.items():
            if p.grad is not None:
                total += p.grad**2 if squared else p.grad
    for p, total in sums.items():
        p.grad = total / len(picked)
