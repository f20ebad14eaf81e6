"""What all peers need: a budget on a network, the search for a knob that meets it, BatchNorm, files."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
from benchlib import Batches, Bench
from torch import Tensor, nn
from torch.nn import functional as F

import cnncompress as cc
from cnncompress.network.run import forward, inference
from cnncompress.network.swap import swap

TOLERANCE = 0.002  # of the original's MACs: a peer's network may be so much above the budget
BATCH = 250  # images, for BatchNorm statistics
BatchNorm = nn.modules.batchnorm._BatchNorm

Make = Callable[[], nn.Module]


@dataclasses.dataclass(frozen=True)
class Score:
    """How a network does on images: top-1 in percent, cross entropy and divergence from the original in nats."""

    top1: float
    loss: float
    divergence: float


@dataclasses.dataclass
class Task:
    """A network to bring to `budget` of its MACs; `folder` keeps what other budgets of the network can use.

    A search that evaluates many networks uses no more than `search_images` of the calibration images.
    """

    bench: Bench
    budget: float
    folder: Path
    search_images: int = 1000

    @cached_property
    def macs(self) -> int:
        """MACs of the original network."""
        return cc.profile(self.bench.model, self.bench.example).macs

    def share(self, network: nn.Module) -> float:
        """MACs of a network by those of the original."""
        return cc.profile(network, self.bench.example).macs / self.macs

    def search(self, make: Callable[[float], nn.Module], low: float, high: float, steps: int = 12) -> nn.Module:
        """The costliest network within the budget, by bisection of a knob with which the MACs rise."""
        found: list[tuple[float, nn.Module]] = []
        for _ in range(steps):
            knob = (low + high) / 2
            network = make(knob)
            share = self.share(network)
            within = share <= self.budget + TOLERANCE
            low, high = (knob, high) if within else (low, knob)
            found += [(share, network)] if within else []
        if not found:
            raise ValueError(f"no network of {self.budget:.3g} of the MACs between {low:.3g} and {high:.3g}")
        return max(found, key=lambda pair: pair[0])[1]

    @property
    def images(self) -> int:
        """How many calibration images there are."""
        return sum(len(x) for x, _ in self.bench.calibration)

    def for_search(self) -> Task:
        """The same with so many calibration images only, spread evenly over them."""
        batches = self.bench.calibration
        step = max(1, round(self.images / self.search_images))
        return dataclasses.replace(self, bench=dataclasses.replace(self.bench, calibration=batches[::step]))

    @cached_property
    def original(self) -> Tensor:
        """The original's log probabilities on the calibration images [images, classes]."""
        return answers(self.bench.model, self.bench.calibration)

    def score(self, network: nn.Module) -> Score:
        """How a network does on the calibration images."""
        found = answers(network, self.bench.calibration)
        labels = torch.cat([y for _, y in self.bench.calibration])
        divergence = (self.original.exp() * (self.original - found)).sum(1).mean()
        hits = (found.argmax(1) == labels).double().mean()
        return Score(100 * float(hits), float(F.nll_loss(found, labels)), float(divergence))


def answers(network: nn.Module, batches: Batches) -> Tensor:
    """Log probabilities [images, classes], in float64."""
    with inference(network):
        return torch.cat([F.log_softmax(forward(network, x).double(), 1) for x, _ in batches])


def has_batchnorm(network: nn.Module) -> bool:
    """Whether there is anything to re-estimate."""
    return any(isinstance(m, BatchNorm) for m in network.modules())


def reestimated(network: nn.Module, batches: Batches) -> nn.Module:
    """A copy whose BatchNorm statistics are those of the images, averaged over large batches.

    The same as `aimet_torch.bn_reestimation.reestimate_bn_stats`, for all peers.
    """
    network = copy.deepcopy(network).eval()
    for module in network.modules():
        if isinstance(module, BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # a plain average of the batches
            module.train()
    images = torch.cat([x for x, _ in batches])
    with torch.no_grad():
        for batch in images.split(BATCH):
            network(batch)
    return network.eval()


def rounding(count: int) -> list[float]:
    """What to add to a layer's rank before it is cut to a whole number, for each of `count` layers.

    Spread over 0 to 1, so that layers of equal width do not all round alike and the MACs come close to the budget.
    """
    return [(0.5 + 0.618 * i) % 1 for i in range(count)]


def keep(network: nn.Module, original: nn.Module, path: Path) -> None:
    """Write what stands in the places of the original's innermost modules; only modules of torch are pickled."""
    leaves = [name for name, module in original.named_modules() if not list(module.children())]
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: network.get_submodule(name) for name in leaves}, path)


def kept(original: nn.Module, path: Path) -> nn.Module:
    """The network that `keep` wrote."""
    network = copy.deepcopy(original)
    for name, module in torch.load(path, weights_only=False).items():
        swap(network, name, module)
    return network.eval()
