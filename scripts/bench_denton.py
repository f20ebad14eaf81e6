"""The cascade of Denton et al. 2014 (section 4.2) at a small scale: conv1 in few colours, then conv2 in biclusters.

    python scripts/bench_denton.py train --data FOLDER [--epochs 10]
    python scripts/bench_denton.py cifar_vgg --data FOLDER
    python scripts/bench_denton.py squeezenet1_0 --weights FILE --data FOLDER
    python scripts/bench_denton.py --show

`train` trains `cifar_vgg`, a narrow network of the form of VGG with two layers of 5×5, on all training images of a set
like CIFAR-10, for a number of epochs that was fixed beforehand; its weights go to `--weights`. The second convolution
of `squeezenet1_0` that is decomposed is the first 3×3 one that takes enough channels.

Rows have the rise of the error in points, on images that neither calibrated nor trained nor chose anything, with its
paired standard error: of conv1 decomposed in the kernel's own norm and in that of the images' covariance, of what is
above it fine-tuned then, and of conv2 decomposed on top of one of these networks and fine-tuned. A step has one epoch.
A fifth of the evaluation images chooses between it and its start. Without training images, four tenths of the
evaluation images take their place. `faster` is the quotient of the layer's MACs. Rows go to `results/denton.csv`; a row
that is there is not computed again.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from benchlib import Table, markdown, table_parser
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import cnncompress as cc
from cnncompress.data import Augmented, Images
from cnncompress.data.sample import evenly
from cnncompress.network.evaluate import Evaluation, evaluate, paired_error
from cnncompress.network.preprocessing import Preprocessing
from cnncompress.network.provenance import provenance
from cnncompress.planning.rules import RankRequest

DATA = "data-covariance"
COLOURS = {"cifar_vgg": (4, 8, 16), "squeezenet1_0": (6, 12)}
KEPT_COLOURS = {"cifar_vgg": 8, "squeezenet1_0": 12}  # under the second layer; fixed beforehand
LAYERS = {"cifar_vgg": ("0", "4"), "squeezenet1_0": ("features.0", "features.3.expand3x3")}
SECOND: dict[str, tuple[tuple[str, RankRequest], ...]] = {
    "cifar_vgg": (("bicluster-outer:G=4,H=2", 12), ("bicluster-svd:G=2,H=2", (8, 12))),
    "squeezenet1_0": (("bicluster-outer:G=2,H=2", 12),),
}
Chosen = Mapping[str, tuple[str, RankRequest]]  # layers with their methods and ranks
KEYS = ("network", "layer", "method", "rank", "step")
COLUMNS = (*KEYS, "faster", "top1", "rise", "error", "images", "trained", "seconds")
BATCH, RATE = 128, 3e-3


def cifar_vgg() -> nn.Sequential:
    """Input [n, 3, 32, 32], output [n, 10]: 24 million MACs, of which conv2 has 13."""
    layers: list[nn.Module] = []
    for inputs, outputs, kernel, pool in ((3, 32, 5, 2), (32, 64, 5, 2), (64, 96, 3, 1), (96, 96, 3, 2)):
        convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(pool)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(96 * 16, 10))


def decoded(images: Images) -> tuple[Tensor, Tensor]:
    """All images of a set and their labels."""
    batches = list(cc.make_loader(images, 500))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def shifted(x: Tensor) -> Tensor:
    """A batch, half of it mirrored, moved by up to 4 pixels."""
    x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)
    padded, (top, left) = F.pad(x, (4, 4, 4, 4), mode="replicate"), torch.randint(9, (2,)).tolist()
    return padded[:, :, top : top + 32, left : left + 32]


def train(images: Images, epochs: int) -> nn.Module:
    """The network after so many epochs of AdamW in one cycle, in bfloat16 with weights in float32."""
    torch.manual_seed(0)
    model = cifar_vgg().to(memory_format=torch.channels_last)
    x, y = decoded(images)
    steps = len(x) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.02)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=epochs * steps)
    for epoch in range(epochs):
        total, began = 0.0, time.perf_counter()
        for index in torch.randperm(len(x))[: steps * BATCH].split(BATCH):
            with torch.autocast("cpu", torch.bfloat16):
                scores = model(shifted(x[index]).contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(scores.float(), y[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cycle.step()
            total += loss.item()
        print(f"epoch {epoch + 1}: loss {total / steps:.4f}, {time.perf_counter() - began:.0f} s", flush=True)
    return model.eval()


@dataclasses.dataclass
class Experiment:
    """A network, and images to train and calibrate on, to choose by and to judge by; `rate` None is by trials."""

    name: str
    model: nn.Module
    train: Augmented
    choosing: Images
    others: Images
    rate: float | None
    batch: int

    def __post_init__(self) -> None:
        self.example = torch.zeros(1, *self.train[0][0].shape)
        self.before = self.judged(self.model)
        self.done: dict[str, nn.Module] = {}

    def judged(self, network: nn.Module) -> Evaluation:
        """The accuracy on the images that chose nothing."""
        return evaluate(network, cc.make_loader(self.others, 50))

    def decomposed(self, network: nn.Module, chosen: Chosen, metric: str) -> nn.Module:
        """The network with some layers in chains, by method and rank."""
        choices = {layer: cc.Choice(method, rank) for layer, (method, rank) in chosen.items()}
        plan = cc.plan(network, self.example, per_layer=choices, layers=list(chosen), metric=metric, force=True)
        assert plan.layers.keys() == chosen.keys(), plan.kept
        plain = self.train.plain
        found = {}
        if metric != "frobenius":
            loader = cc.make_loader(plain, 50, indices=range(0, len(plain), max(1, len(plain) // 1000)))
            found = cc.collect_statistics(network, loader, metric, layers=list(chosen), progress=False)
        return cc.decompose(network, plan, statistics=found, progress=False)

    def cascaded(self, chosen: Chosen) -> nn.Module:
        """The network after a cascade over some layers, one epoch each."""
        if str(chosen) in self.done:
            return self.done[str(chosen)]
        small = self.decomposed(self.model, chosen, DATA)
        settings = cc.FinetuneSettings(schedule="cascade", epochs=1, lr=self.rate, batch_size=self.batch)
        original = copy.deepcopy(self.model)
        result = cc.finetune(small, self.train, self.choosing, settings, device="cpu", original=original)
        for step in result.steps:
            print("  " + step.words, *(f"{value.top1:.1f}" for value in (step.before, step.decomposed, step.tuned)))
        self.done[str(chosen)] = small
        return small

    def add(self, table: Table, layer: str, chosen: Chosen, step: str, make: Callable[[], nn.Module]) -> None:
        """The row of a network that `make` makes, unless it is there."""
        method, rank = chosen[layer]
        key = {"network": self.name, "layer": layer, "method": method, "rank": rank, "step": step}
        if table.find(**key):
            return
        began = time.perf_counter()
        network = make()
        after, planned = self.judged(network), provenance(network).plan.layers[layer]  # type: ignore[union-attr]
        table.add(
            **key, faster=planned.macs[0] / planned.macs[1], top1=after.top1, rise=self.before.top1 - after.top1,
            error=paired_error(self.before, after) or 0.0, images=after.images, trained=len(self.train),
            seconds=time.perf_counter() - began,
        )  # fmt: skip


def run(table: Table, bench: Experiment) -> None:
    """All rows of a network that are not there yet."""
    one, two = LAYERS[bench.name]
    print(f"{bench.name}: {bench.before.top1:.2f} % on {bench.before.images} images", flush=True)
    for colours in COLOURS[bench.name]:
        first: Chosen = {one: ("monochromatic", colours)}
        for metric in ("frobenius", DATA):
            bench.add(table, one, first, metric, partial(bench.decomposed, bench.model, first, metric))
        bench.add(table, one, first, "fine-tuned", partial(bench.cascaded, first))
    first = {one: ("monochromatic", KEPT_COLOURS[bench.name])}
    below = bench.cascaded(first)
    for how in SECOND[bench.name]:
        bench.add(table, two, {two: how}, DATA, partial(bench.decomposed, below, {two: how}, DATA))
        bench.add(table, two, {two: how}, "fine-tuned", partial(bench.cascaded, {**first, two: how}))


def opened(args: argparse.Namespace) -> Experiment:
    """The experiment of a network."""
    model: nn.Module = cifar_vgg().eval()
    preprocessing = Preprocessing((32, 32), None)
    if args.network == "cifar_vgg":
        model.load_state_dict(load_file(args.weights))
    else:
        loaded = cc.load_model(args.network, str(args.weights))
        model, preprocessing = loaded.model, loaded.preprocessing
    data = cc.load_data(args.data, preprocessing, None)
    held = list(range(len(data.val)))
    if data.train is None:
        chosen, held = data.val.subset([i for i in held if i % 10 < 4]), [i for i in held if i % 10 >= 4]
    else:
        chosen = data.train.subset(evenly(len(data.train), args.images))
    train = Augmented(chosen, preprocessing, flip=True, seed=0)
    choosing, others = held[::5], [i for place, i in enumerate(held) if place % 5]
    return Experiment(
        args.network, model, train, data.val.subset(choosing), data.val.subset(others), args.rate, args.batch
    )


def show(table: Table) -> None:
    """The rows as a Markdown table: a line a method, with the steps beside each other."""
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for row in table.rows:
        line = lines.setdefault(tuple(row[k] for k in ("network", "layer", "method", "rank")), {})
        line["faster"] = f"{float(row['faster']):.2f}×"
        line[row["step"]] = f"{float(row['rise']):+.1f} ± {float(row['error']):.1f}"
    heads = ["network", "layer", "method", "rank", "faster", "frobenius", DATA, "fine-tuned"]
    print(markdown([[*line, *(found.get(h, "") for h in heads[4:])] for line, found in lines.items()], heads))


def main() -> None:
    options = table_parser(__doc__)
    options.add_argument("network", nargs="?", choices=["train", *LAYERS])
    options.add_argument("--data")
    options.add_argument("--weights", type=Path, default=Path("build/cifar_vgg.safetensors"))
    options.add_argument("--epochs", type=int, default=10)
    options.add_argument("--images", type=int, default=10_000, help="training images of a step")
    options.add_argument("--rate", type=float, help="learning rate of the steps [default: by trials]")
    options.add_argument("--batch", type=int, default=64)
    args = options.parse_args()
    torch.set_num_threads(1)
    table = Table(args.results / "denton.csv", KEYS, COLUMNS)
    if args.network == "train":
        data = cc.load_data(args.data, Preprocessing((32, 32), None), None)
        assert data.train is not None
        model = train(data.train, args.epochs)
        args.weights.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, args.weights)
        print(f"{evaluate(model, cc.make_loader(data.val, 100)).top1:.2f} % of {len(data.val)} images")
        return
    if not args.show:
        run(table, opened(args))
    show(table)


if __name__ == "__main__":
    main()
