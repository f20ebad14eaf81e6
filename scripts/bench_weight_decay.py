"""What weight decay should act on in chains: the kernels of their stages, the kernel that these compose, or nothing.

    python scripts/bench_weight_decay.py RUN --data FOLDER [--images 4000] [--decays 1e-4 1e-2]
    python scripts/bench_weight_decay.py --show

A run's network, whose chains are of plain convolutions, is trained for an epoch on training images and labels: SGD with
momentum along a cosine, batch normalisation as it is. Layers outside of chains have their decay on the kernel in all
three ways. The decay of a composed kernel is the gradient of half its squared norm. Accuracies are those of evaluation
images that chose nothing, differences those from no decay on chains, with their paired standard error. Rows go to
`results/weight_decay.csv`.
"""

from __future__ import annotations

import argparse
import copy
import math
from pathlib import Path

import torch
from benchlib import Table, markdown, table_parser
from torch import Tensor, nn
from torch.nn import functional as F

import cnncompress as cc
from cnncompress.chains.compose import compose
from cnncompress.chains.modules import FactoredLayer
from cnncompress.finetuning.schedules import training_modes
from cnncompress.network.evaluate import Evaluation, evaluate, paired_error
from cnncompress.runs import load_run

WAYS = ("none", "stages", "composed")
BATCH, MOMENTUM = 64, 0.9
MEASURED = ("top1", "loss", "change", "change_error", "norm", "images")
COLUMNS = ("rate", "decay", "way", "trained", "epochs", *MEASURED)


def chains(network: nn.Module) -> list[FactoredLayer]:
    return [module for module in network.modules() if isinstance(module, FactoredLayer)]


def penalty(network: nn.Module, way: str) -> Tensor:
    """Half the squared norm of what decays."""
    layers = chains(network)
    inner = {p for layer in layers for p in layer.parameters()}
    decaying = [p for p in network.parameters() if p.dim() > 1 and (way == "stages" or p not in inner)]
    if way == "composed":
        decaying += [compose(layer.chain, [stage.weight for stage in layer]) for layer in layers]
    return sum((p.square().sum() for p in decaying), torch.zeros(())) / 2


def trained(network: nn.Module, batches: list[tuple[Tensor, Tensor]], rate: float, decay: float, way: str) -> nn.Module:
    """A copy after one pass over the batches."""
    network = copy.deepcopy(network)
    training_modes(network, [name for name, _ in network.named_modules()], freeze_bn=True)()
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=MOMENTUM)
    for step, (images, labels) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / len(batches)))
        optimizer.zero_grad()
        (F.cross_entropy(network(images), labels) + decay * penalty(network, way)).backward()
        optimizer.step()
    return network.eval()


def measure(table: Table, args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    run = load_run(args.run, trust_code=True)
    assert run.preprocessing is not None
    small, data = run.model, cc.load_data(args.data, run.preprocessing, None)
    assert data.train is not None
    chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(args.seed))[: args.images]
    batches = list(cc.make_loader(data.train, BATCH, indices=chosen.tolist()))
    val = list(cc.make_loader(data.val, 100))
    before = evaluate(small, val)
    print(f"before: {before.top1:.2f} %, loss {before.loss:.4f}")
    for rate in args.rates:
        for decay in args.decays:
            plain: Evaluation | None = None
            for way in WAYS:
                network = trained(small, batches, rate, decay, way)
                found = evaluate(network, val)
                plain = plain or found
                norm = sum(float(c.to_dense().detach().square().sum()) for c in chains(network)) ** 0.5
                table.add(
                    rate=rate, decay=decay, way=way, trained=args.images, epochs=1, top1=found.top1, loss=found.loss,
                    change=found.top1 - plain.top1, change_error=paired_error(plain, found) or 0.0, norm=norm,
                    images=found.images,
                )  # fmt: skip


def show(table: Table) -> None:
    """The rows as a Markdown table."""
    heads = ["rate", "decay", "acts on", "top-1 %", "loss", "points from none on chains"]
    lines = [
        [
            *(r["rate"], r["decay"], r["way"], f"{float(r['top1']):.2f}", f"{float(r['loss']):.4f}"),
            f"{float(r['change']):+.2f} ± {float(r['change_error']):.2f}",
        ]
        for r in table.rows
    ]
    print(markdown(lines, heads))


def main() -> None:
    options = table_parser(__doc__)
    options.add_argument("run", type=Path, nargs="?")
    options.add_argument("--data")
    options.add_argument("--images", type=int, default=4000)
    options.add_argument("--rates", type=float, nargs="+", default=[0.001, 0.01])
    options.add_argument("--decays", type=float, nargs="+", default=[1e-4, 1e-2])
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args()
    path = args.results / "weight_decay.csv"
    if not args.show:
        path.unlink(missing_ok=True)
        measure(Table(path, COLUMNS[:3], COLUMNS), args)
    show(Table(path, COLUMNS[:3], COLUMNS))


if __name__ == "__main__":
    main()
