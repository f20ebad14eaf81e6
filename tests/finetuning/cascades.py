"""A network of three convolutions, its decompositions and its cascades, for the tests of these."""

from __future__ import annotations

import copy
import functools

import torch
from torch import nn

import cnncompress as cc
from cnncompress.finetuning import FinetuneSettings, Lessons, Origin, finetune
from cnncompress.fitting import fit_alone
from cnncompress.network.compressed import with_provenance
from tests.finetuning.toy import Toy

CONVOLUTIONS = ("0", "4", "7")
VAL = Toy(24, seed=1)


@functools.lru_cache(1)
def trained():
    torch.set_num_threads(1)
    torch.manual_seed(3)
    body = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
    for _ in range(2):  # on 4×4 positions, of which statistics leave none out
        body += [nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    network = nn.Sequential(*body, nn.Flatten(), nn.Dropout(0.25), nn.Linear(128, 3)).eval()
    cc.finetune(network, Toy(), VAL, FinetuneSettings(epochs=3, batch_size=8, lr=0.05), device="cpu")
    return network


def original():
    return copy.deepcopy(trained())


def images(dataset=None):
    dataset = dataset or Toy()
    return torch.stack([dataset[i][0] for i in range(len(dataset))])


def plan_of(network, metric="data-covariance", rank=2, **options):
    return cc.plan(network, images()[:1], method="spatial-svd", rank=rank, metric=metric, **options)


def small_of(network, metric="data-covariance", **options):
    """The network with its convolutions in chains, right on a third of the images."""
    plan = plan_of(network, metric, **options)
    found = cc.decompose(network, plan, statistics=statistics_of(network, metric), progress=False)
    with torch.no_grad():
        found[-1].weight.zero_()
    return found


def statistics_of(network, metric, layers=None):
    if metric == "frobenius":
        return {}
    loader = cc.make_loader(Toy(), 8)
    return cc.collect_statistics(network, loader, metric, layers=layers, seed=5, progress=False)


def settings(**changes):
    chosen = {"schedule": "cascade", "epochs": 2, "batch_size": 8, "lr": 0.02, "seed": 5}
    return FinetuneSettings(**{**chosen, **changes})


def tune(folder, small, network=None, train=None, resume=False, **changes):
    torch.set_num_threads(1)
    network = original() if network is None else network
    lessons = Lessons(train or Toy(), VAL, origin=Origin(network, with_provenance(small).plan))
    return finetune(small, lessons, settings(**changes), folder / "checkpoints", device="cpu", resume=resume)


def watch(monkeypatch):
    """The decompositions of a cascade: the layer, the network before, its statistics, the network after."""
    seen = []

    def watched(network, before, plan, **options):
        (name,) = plan.layers
        given = copy.deepcopy(network)
        after = fit_alone(network, before, plan, **options)
        seen.append((name, given, options["statistics"], copy.deepcopy(after.network)))
        return after

    monkeypatch.setattr("cnncompress.finetuning.cascade.fit_alone", watched)
    return seen
