"""AIMET (aimet-torch 2.42): spatial SVD with greedily searched ranks, or one ratio for all layers.

Its greedy search measures every layer alone at nine ratios (`num_comp_ratio_candidates=10`) on the calibration images,
then takes the ratios of a common threshold. The measurements are made once a network and kept as JSON lines, so that
an interrupted search goes on, and are turned into three scores: top-1, cross entropy (both with labels) and divergence
from the original's outputs. AIMET reads them from its own file of saved scores, with or without its monotonic fit.
With one ratio for all layers, it gets all convolutions, those larger than 1×1, or these without the first.
BatchNorm stays apart: its scale in the weights made all networks of the CIFAR ResNets worse. AIMET's channel pruning
cannot be used here: it refuses functional ReLUs (`NotImplementedError: Unsupported op_type relu`).
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import logging
import pickle
import time
from collections.abc import Iterator, Sequence
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

from aimet_torch.common.defs import CompressionScheme, CostMetric, GreedySelectionParameters
from aimet_torch.compress import ModelCompressor
from aimet_torch.defs import ModuleCompRatioPair, SpatialSvdParameters
from torch import nn

from peers.shared import Make, Task, rounding

CANDIDATES = 10
DICTIONARY = Path("data/greedy_selection_eval_scores_dict.pkl")  # where AIMET writes it, below the working directory
REACH = 0.1  # AIMET's own target is searched so far around the budget
SCORES = {"top-1": "top1", "loss": "loss", "divergence": "divergence"}
logging.disable(logging.INFO)


def variants(task: Task) -> Iterator[tuple[str, Make, float]]:
    """(Name, what makes the network, seconds that went into it before) of each way to use the tool."""
    fewer = task.for_search()
    recorded = Recorder(fewer, task.folder / f"aimet-{fewer.images}.jsonl")
    for score, table in search(task, recorded).items():
        for fit in (False, True):
            name = f"greedy by {score}{', monotonic fit' if fit else ''}"
            yield name, partial(greedy, task, table, fit), recorded.seconds
    for scope, layers in scopes(task.bench.model).items():
        yield f"uniform, {scope}", partial(uniform, task, layers), 0.0


def scopes(model: nn.Module) -> dict[str, list[nn.Conv2d]]:
    """The convolutions that are split, by the name of the choice; a choice that changes nothing is left out."""
    every = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups == 1]
    large = [m for m in every if max(m.kernel_size) > 1]
    inner = [m for m in large if m is not every[0]]
    found = {"all layers": every, "no 1×1": large, "inner": inner}
    return {name: x for name, x in found.items() if name == "all layers" or len(x) < len(every)}


def compress(task: Task, mode: str, params: Any, evaluate: Any) -> nn.Module:
    """One call of AIMET, in the task's folder, where it leaves files."""
    work = SpatialSvdParameters.Mode[mode]
    task.folder.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(task.folder):
        network, _ = ModelCompressor.compress_model(
            task.bench.model,
            eval_callback=evaluate,
            eval_iterations=None,
            input_shape=tuple(task.bench.example.shape),
            compress_scheme=CompressionScheme.spatial_svd,
            cost_metric=CostMetric.mac,
            parameters=SpatialSvdParameters(work, params),
        )
    return network


def ignore(*_: Any, **__: Any) -> float:
    """An evaluation that is not needed."""
    return 0.0


def uniform(task: Task, layers: Sequence[nn.Conv2d]) -> nn.Module:
    """The same ratio for all of some layers, but for rounding."""

    def at(ratio: float) -> nn.Module:
        parts = zip(layers, rounding(len(layers)), strict=True)
        pairs = [ModuleCompRatioPair(x, Decimal(min(1.0, ratio + part / dense_rank(x)))) for x, part in parts]
        return compress(task, "manual", SpatialSvdParameters.ManualModeParams(pairs), ignore)

    return task.search(at, 0.0, 1.0)


def dense_rank(layer: nn.Conv2d) -> float:
    """The rank at which the two layers of a split have as many weights as the layer."""
    high, wide = layer.kernel_size
    return layer.weight.numel() / (layer.in_channels * high + layer.out_channels * wide)


class Recorder:
    """AIMET's evaluation callback: scores on the calibration images, each kept in a file as soon as it is known."""

    def __init__(self, task: Task, path: Path) -> None:
        self.task, self.path, self.calls = task, path.absolute(), 0
        self.done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        self.clock = time.process_time()

    def __call__(self, network: nn.Module, iterations: int | None, use_cuda: bool = False) -> float:
        """Top-1; of the file, where the search was interrupted behind this point."""
        if self.calls == len(self.done):
            score = dataclasses.asdict(self.task.score(network))
            self.done.append(score | {"seconds": time.process_time() - self.clock})
            with self.path.open("a") as file:
                file.write(json.dumps(self.done[-1]) + "\n")
        self.clock = time.process_time()
        self.calls += 1
        return self.done[self.calls - 1]["top1"]

    @property
    def seconds(self) -> float:
        """What the whole search took."""
        return sum(entry["seconds"] for entry in self.done)


def search(task: Task, recorded: Recorder) -> dict[str, Path]:
    """AIMET's measurements of every layer at every ratio, as files of saved scores, one for each kind of score."""
    chosen = GreedySelectionParameters(target_comp_ratio=Decimal("0.5"), num_comp_ratio_candidates=CANDIDATES)
    compress(task, "auto", SpatialSvdParameters.AutoModeParams(chosen), recorded)
    measured = pickle.loads((task.folder / DICTIONARY).read_bytes())  # written by the call above
    paths = {}
    for name, key in SCORES.items():
        table, entries, sign = copy.deepcopy(measured), iter(recorded.done), 1 if key == "top1" else -1
        for layer in table.values():
            for ratio in layer:
                layer[ratio] = sign * next(entries)[key]
        paths[name] = (task.folder / f"aimet-{key}.pkl").absolute()
        paths[name].write_bytes(pickle.dumps(table))
    return paths


def greedy(task: Task, table: Path, fit: bool) -> nn.Module:
    """AIMET's choice of ratios for the budget, from saved scores."""

    def at(target: float) -> nn.Module:
        chosen = GreedySelectionParameters(Decimal(target), CANDIDATES, fit, str(table))
        return compress(task, "auto", SpatialSvdParameters.AutoModeParams(chosen), ignore)

    return task.search(at, max(0.0, task.budget - REACH), min(1.0, task.budget + REACH), 7)
