"""What the benchmark scripts share: a network with its images in memory, cached statistics, CSV files, tables."""

from __future__ import annotations

import argparse
import csv
import dataclasses
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn import functional as F

import cnncompress as cc
from cnncompress.data import split
from cnncompress.metrics.statistics import LayerStatistics
from cnncompress.network.evaluate import evaluate
from cnncompress.network.kinds import spec_of
from cnncompress.network.layers import layers_of
from cnncompress.network.run import forward, inference
from cnncompress.statistics import collect_statistics, load_statistics, save_statistics, statistics_key

RESULTS = Path(__file__).parent / "results"
METRICS = ("frobenius", "mahalanobis", "data-covariance", "kronecker")
COLOURS = dict(zip(METRICS, ("tab:gray", "tab:orange", "tab:blue", "tab:red"), strict=True))

Batches = list[tuple[Tensor, Tensor]]


@dataclasses.dataclass
class Bench:
    """A network, an example input, and decoded batches of images: for statistics, and others to evaluate on."""

    name: str
    model: nn.Module
    example: Tensor
    calibration: Batches
    held_out: Batches
    fingerprint: str

    def statistics(
        self, layers: Sequence[str], cache: Path, metrics: Sequence[str] = METRICS
    ) -> dict[str, LayerStatistics]:
        """What the metrics need to know about some layers, from the cache where it fits."""
        images = sum(len(x) for x, _ in self.calibration)
        wanted = {"images": images, "layers": list(layers), "metrics": list(metrics)}
        key = statistics_key(self.model, self.fingerprint, wanted)
        path = cache / f"{self.name}-{key[:8]}.safetensors"
        found = load_statistics(path, key)
        if found is None:
            found = collect_statistics(self.model, self.calibration, metrics, layers=layers)
            cache.mkdir(parents=True, exist_ok=True)
            save_statistics(path, found, key)
        return found

    def top1(self, model: nn.Module | None = None) -> float:
        """Percent of the held-out images that a network (the original by default) gets right."""
        return evaluate(model or self.model, self.held_out).top1

    def answers(self, model: nn.Module) -> Tensor:
        """A network's log probabilities on the held-out images, [images, classes], in float64."""
        with inference(model):
            return torch.cat([F.log_softmax(forward(model, x).double(), 1) for x, _ in self.held_out])

    @cached_property
    def original(self) -> Tensor:
        """The answers of the network itself."""
        return self.answers(self.model)

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Top-1 in percent, and the Kullback-Leibler divergence from the original's answers in nats an image."""
        found, labels = self.answers(model), torch.cat([y for _, y in self.held_out])
        divergence = float(self.divergences(found).mean())
        return {"top1": 100 * float((found.argmax(1) == labels).double().mean()), "divergence": divergence}

    def divergences(self, answers: Tensor) -> Tensor:
        """The Kullback-Leibler divergence of each held-out image from the original's answer, in nats, [images]."""
        return (self.original.exp() * (self.original - answers)).sum(1)

    @property
    def images(self) -> int:
        """How many images are held out."""
        return sum(len(x) for x, _ in self.held_out)

    def inner_layers(self) -> list[str]:
        """The 3×3 convolutions, without the one that sees the image."""
        specs = {name: spec_of(module) for name, module in layers_of(self.model).items()}
        return [n for n, s in specs.items() if s.kernel_size == (3, 3) and s.in_channels > 3]


def bare_parser(description: str | None) -> argparse.ArgumentParser:
    """The option that all benchmarks have."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--results", type=Path, default=RESULTS, help="folder for the CSV and the plot")
    return options


def table_parser(description: str | None) -> argparse.ArgumentParser:
    """The options of benchmarks whose table can be shown without a run."""
    options = bare_parser(description)
    options.add_argument("--show", action="store_true", help="only show the table")
    return options


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks of a pretrained network have."""
    options = bare_parser(description)
    options.add_argument("model", help="as for `cnncompress decompose`")
    options.add_argument("--weights", default="DEFAULT")
    options.add_argument("--data", required=True)
    options.add_argument("--input-size", type=int)
    options.add_argument("--mean", type=float, nargs="+")
    options.add_argument("--std", type=float, nargs="+")
    options.add_argument("--calibration-images", type=int, default=1000)
    options.add_argument("--images", type=int, help="evaluate on so many of the held-out images [default: all]")
    options.add_argument("--cache", type=Path, default=Path("build/bench"), help="folder for statistics")
    return options


def open_bench(args: argparse.Namespace) -> Bench:
    """The network and its images; of a set without training images one half is for statistics."""
    given = {option: getattr(args, option) for option in ("input_size", "mean", "std")}
    loaded = cc.load_model(args.model, args.weights, **given)
    model = loaded.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # half as fast again
    data = split(cc.load_data(args.data, loaded.preprocessing, None), 0.5, 0)
    assert data.train is not None
    name = args.model.rsplit(":", 1)[-1]
    example = torch.zeros(1, 3, *loaded.preprocessing.size)
    calibration = decode(data.train, args.calibration_images)
    return Bench(name, model, example, calibration, decode(data.val, args.images), data.fingerprint)


def decode(images: Any, count: int | None) -> Batches:
    """Batches of `count` images (None: all) spread evenly over a set, of a size that the caches like."""
    count = min(count or len(images), len(images))
    indices = np.unique(np.linspace(0, len(images) - 1, count).astype(int)).tolist()
    size = 50 if max(images.preprocessing.size) <= 64 else 5
    return list(cc.make_loader(images, size, indices=indices))


class Table:
    """A CSV file that is written row by row, so that an interrupted sweep goes on where it was."""

    def __init__(self, path: Path, keys: Sequence[str], columns: Sequence[str]) -> None:
        self.path, self.keys, self.columns = path, keys, columns
        self.rows = read_csv(path)
        path.parent.mkdir(parents=True, exist_ok=True)

    def find(self, **key: object) -> dict[str, str] | None:
        """The row of a key, or None."""
        wanted = [as_text(key[k]) for k in self.keys]
        return next((row for row in self.rows if [row[k] for k in self.keys] == wanted), None)

    def add(self, **values: object) -> None:
        """Append one row."""
        row = {c: as_text(values[c]) for c in self.columns}
        fresh = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            if fresh:
                writer.writeheader()
            writer.writerow(row)
        self.rows.append(row)
        print(" ".join(f"{k}={v}" for k, v in row.items()), flush=True)


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a header; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def markdown(rows: Iterable[Sequence[object]], headers: Sequence[str]) -> str:
    """A Markdown table; numbers to one decimal."""
    body = [["" if v is None else f"{v:.1f}" if isinstance(v, float) else v for v in row] for row in rows]
    align = ["left", *["right"] * (len(headers) - 1)]
    return tabulate(body, headers, tablefmt="github", disable_numparse=True, colalign=align)


def as_text(value: object) -> str:
    """As it stands in a file: floats with six significant digits."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
