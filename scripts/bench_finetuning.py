"""Images a second of fine-tuning: all layers and the upper ones, with and without kept outputs, beside a plain loop.

    python scripts/bench_finetuning.py --weights FILE --data FOLDER --model FILE.py:resnet20 [--rounds 3] [--way WAY]...
    python scripts/bench_finetuning.py --show

The first two groups of a residual network for CIFAR-10 are decomposed, and `IMAGES` training images are seen in
`EPOCHS` epochs as they are evaluated, in batches of `BATCH`. The ways take turns, `--rounds` times. `epochs` are images
a second of the epochs alone, each with its validation of `BATCH` images; `all` of everything from the network in memory
on, so that the pass that fills the memory counts, and compiling, which later rounds find in torch's cache. The plain
loop is torch's own: DataLoader, cross entropy, backward, SGD. Rows, medians of the rounds, go to
`results/finetuning_speed.csv`, where they take the place of the same ways on the same processor.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Collection
from pathlib import Path

import torch
from benchlib import Table, markdown, table_parser
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import cnncompress as cc
from cnncompress import processor
from cnncompress.data import Augmented, Images

IMAGES, EPOCHS, BATCH = 192, 3, 64
RATE = 0.001
UPPER = {"schedule": "upper"}
WAYS: dict[str, dict[str, object]] = {
    "all": {"schedule": "all"},
    "all, bf16": {"schedule": "all", "precision": "bf16"},
    "all, compiled": {"schedule": "all", "compile": True},
    "all, bf16, compiled": {"schedule": "all", "precision": "bf16", "compile": True},
    "upper": {**UPPER, "cache_gib": 0.0},
    "upper, bf16": {**UPPER, "cache_gib": 0.0, "precision": "bf16"},
    "upper, kept": UPPER,
    "upper, kept, bf16": {**UPPER, "precision": "bf16"},
    "upper, kept, compiled": {**UPPER, "compile": True},
}
KEYS = ("processor", "way")
COLUMNS = (*KEYS, "threads", "epochs", "all")


def plain_loop(network: nn.Module, images: Augmented) -> tuple[float, float]:
    """Seconds of the epochs, and of everything."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=0.9)
    began = time.perf_counter()
    for _ in range(EPOCHS):
        for x, y in DataLoader(images, BATCH, shuffle=True):
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()
    took = time.perf_counter() - began
    return took, took


def finetuned(network: nn.Module, images: Augmented, val: Images, **options: object) -> tuple[float, float]:
    """Seconds of the epochs, and of everything."""
    settings = cc.FinetuneSettings(**{"precision": "fp32", **options}, epochs=EPOCHS, batch_size=BATCH, lr=RATE)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        found = cc.finetune(network, images, val, settings, Path(folder, "checkpoints"), device="cpu")
        return sum(row["seconds"] for row in found.history[1:]), time.perf_counter() - began


def run(table: Table, args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    loaded = cc.load_model(args.model, args.weights, input_size=32)
    data = cc.load_data(args.data, loaded.preprocessing, None)
    assert data.train is not None
    train = Augmented(data.train.subset(range(IMAGES)), loaded.preprocessing, flip=True, seed=0, augment="none")
    val = data.val.subset(range(BATCH))  # looked at after each epoch
    patterns = ["layer1.*", "layer2.*"]
    plan = cc.plan(loaded.model, torch.zeros(1, 3, 32, 32), method="spatial-svd", rank=0.25, layers=patterns)
    small = cc.decompose(loaded.model, plan, progress=False)
    times: dict[str, list[tuple[float, float]]] = {}
    for _ in range(args.rounds):
        for way in args.way or ("plain loop", *WAYS):
            network = copy.deepcopy(small)
            took = finetuned(network, train, val, **WAYS[way]) if way in WAYS else plain_loop(network, train)
            times.setdefault(way, []).append(took)
    forget(table, processor.name(), times)
    for way, rounds in times.items():
        epochs, whole = (IMAGES * EPOCHS / statistics.median(values) for values in zip(*rounds, strict=True))
        table.add(processor=processor.name(), way=way, threads=args.threads, epochs=epochs, all=whole)


def forget(table: Table, name: str, ways: Collection[str]) -> None:
    """Leave out the rows of some ways on a processor."""
    others = [row for row in table.rows if row["processor"] != name or row["way"] not in ways]
    table.path.unlink(missing_ok=True)
    table.rows.clear()
    for row in others:
        table.add(**row)


def show(table: Table) -> None:
    """The rows as a Markdown table."""
    lines = [[*(row[k] for k in KEYS), *(f"{float(row[c]):.0f}" for c in COLUMNS[3:])] for row in table.rows]
    print(markdown(lines, ["processor", "trained", "images/s of the epochs", "images/s with what comes before"]))


def main() -> None:
    options = table_parser(__doc__)
    options.add_argument("--model")
    options.add_argument("--weights")
    options.add_argument("--data")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--way", action="append", choices=["plain loop", *WAYS], help="[default: all]")
    args = options.parse_args()
    path = args.results / "finetuning_speed.csv"
    if not args.show:
        run(Table(path, KEYS, COLUMNS), args)
    show(Table(path, KEYS, COLUMNS))


if __name__ == "__main__":
    main()
