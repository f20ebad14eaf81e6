"""Structures trained from random kernels, in their papers' initialisations and in others, beside the dense network.

    python scripts/bench_scratch.py --data FOLDER [--networks nin wrn] [--images 4000] [--epochs 6] [--rates 0.02 0.1]
    python scripts/bench_scratch.py --show

The networks are narrow: network in network with a quarter of the filters, and a wide residual network of 16 layers and
width 1. Their other layers start with He et al.'s 2 / fan-in in every row. `paper` is what `--init scratch` draws.
`other` is, for the dense network, PyTorch's default (1 / (3 fan-in)); for `composite`, He's variance for each shape of
filters by itself; for `acdc`, He's around zero instead of diagonals near one; for the others 2 / fan-in in every stage,
as if each were rectified. A fifth of the evaluation images chooses the epoch, the others give top-1. Rows go to
`results/scratch.csv` and into a plot; a row that is there is not computed again.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from bench_structures import CHOOSING, trained_entries
from benchlib import Table, markdown, table_parser
from torch import Tensor, nn

import cnncompress as cc
from cnncompress.chains.modules import FactoredLayer
from cnncompress.chains.spec import Stage
from cnncompress.chains.stages import Acdc, Parallel
from cnncompress.data import Augmented
from cnncompress.data.sample import evenly
from cnncompress.decompositions.scratch import normal
from cnncompress.fitting import initialise
from cnncompress.network.evaluate import evaluate
from cnncompress.network.provenance import Provenance

NETWORKS = {
    "nin": ("cifar_nin", {"width_mult": 0.25}, ["features.8", "features.16"]),
    "wrn": ("wrn_40_2", {"depth": 16, "width": 1}, ["stages.*.conv?"]),
}
METHODS = {
    "dense": 1.0, "composite": 1.0, "root:groups=4,order=given": 1.0, "acdc": 1.0, "spatial-svd": 0.25,
    "spatial-svd:norm=batch": 0.25,
}  # fmt: skip
WORDS = {"paper": "as its paper starts", "other": "started otherwise"}
INITS = tuple(WORDS)
KEYS = ("network", "method", "init", "rate", "epochs", "trained", "seed")
COLUMNS = (*KEYS, "macs", "params", "trains_as", "top1", "error", "best_epoch", "first_loss", "last_loss", "seconds")


def drawn(name: str, method: str, init: str, seed: int) -> tuple[nn.Module, cc.Profile]:
    """An untrained network with random kernels, and what it costs."""
    model, arguments, layers = NETWORKS[name]
    network, generator = cc.load_model(model, "none", arguments=arguments).model, torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and not (method == "dense" and init == "other"):
            layer.weight.data.copy_(normal(layer.weight.shape, 2 / layer.weight[0].numel(), generator))
    example = torch.zeros(1, 3, 32, 32)
    if method == "dense":
        return network, cc.profile(network, example)
    plan = cc.plan(network, example, method=method, rank=METHODS[method], layers=layers, force=True)
    small = initialise(network, Provenance(), plan, seed).network
    if init == "other":
        for chain in (m for m in small.modules() if isinstance(m, FactoredLayer)):
            chain.write_kernels([other(stage, generator) for stage in chain.chain])
    return small, cc.profile(small, example)


def other(stage: Stage, generator: torch.Generator) -> Tensor:
    """The kernel of a stage in the initialisation that is not the paper's."""
    if stage.reorders:
        return torch.arange(stage.in_channels)
    if isinstance(stage, Parallel):
        whole = (stage.in_channels // stage.groups, *stage.whole.kernel_size)
        parts = [(b.out_channels, math.prod(b.kernel_size)) for b in stage.branches]
        return torch.cat([normal((count, *whole), 2 / (taps * count), generator) for count, taps in parts])
    name = "diagonals" if isinstance(stage, Acdc) else "weight"
    shape = stage.tensors()[name].shape
    return normal(shape, 2 / (shape[-1] if isinstance(stage, Acdc) else math.prod(shape[1:])), generator)


def add(table: Table, args: argparse.Namespace, key: dict[str, object]) -> None:
    """Train a network, and add its row."""
    began = time.perf_counter()
    network, cost = drawn(str(key["network"]), str(key["method"]), str(key["init"]), args.seed)
    preprocessing = cc.load_model("wrn_40_2", "none").preprocessing
    found = cc.load_data(args.data, preprocessing, None)
    assert found.train is not None
    chosen = found.train.subset(evenly(len(found.train), args.images))
    train = Augmented(chosen, preprocessing, flip=found.flip, seed=0, augment="standard")
    count = len(found.val)
    choosing, others = (found.val.subset([i for i in range(count) if (i % CHOOSING > 0) == k]) for k in (False, True))
    settings = cc.FinetuneSettings(
        lr=float(str(key["rate"])), epochs=args.epochs, precision=args.precision, seed=args.seed
    )
    try:
        result = cc.finetune(network, train, choosing, settings, device="cpu")
    except cc.CompressError as error:
        print(f"{key}: {error}")
        return
    after = evaluate(network, cc.make_loader(others, 100))
    losses = [row["train_loss"] for row in result.history if row["train_loss"] is not None]
    share = after.top1 / 100
    table.add(
        **key, macs=cost.macs, params=cost.params, trains_as=trained_entries(network), top1=after.top1,
        error=100 * (share * (1 - share) / after.images) ** 0.5, best_epoch=result.best_epoch, first_loss=losses[0],
        last_loss=losses[-1], seconds=time.perf_counter() - began,
    )  # fmt: skip


def best(table: Table) -> dict[tuple[str, str], dict[str, dict[str, str]]]:
    """By network and method, the row of each initialisation at the rate that suits it best."""
    found: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for row in sorted(table.rows, key=lambda r: float(r["top1"])):
        found.setdefault((row["network"], row["method"]), {})[row["init"]] = row
    order = list(METHODS)
    return dict(sorted(found.items(), key=lambda item: (item[0][0], order.index(item[0][1]))))


def show(table: Table) -> None:
    """The rows as a Markdown table, the initialisations side by side, each at its best rate."""
    lines = []
    for (network, method), rows in best(table).items():
        cost = next(iter(rows.values()))
        cells: list[object] = [network, f"`{method}`" if method != "dense" else method]
        cells += [f"{int(cost['macs']) / 1e6:.2f}", f"{int(cost['trains_as']):,}"]
        for init in INITS:
            row = rows.get(init)
            cells.append(f"{float(row['top1']):.1f} ± {float(row['error']):.1f} ({row['rate']})" if row else "")
        lines.append(cells)
    print(
        markdown(
            lines, ["network", "method", "MACs, millions", "parameters trained", "its initialisation", "the other"]
        )
    )


def plot(table: Table, path: Path) -> None:
    """One panel a network: top-1 by method, a bar for each initialisation, with standard errors."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = best(table)
    networks = list(dict.fromkeys(network for network, _ in found))
    figure, axes = plt.subplots(1, len(networks), figsize=(5 * len(networks), 3.4), squeeze=False, layout="constrained")
    for axis, network in zip(axes.flat, networks, strict=True):
        methods = [method for name, method in found if name == network]
        for side, (init, colour) in enumerate(zip(INITS, ("tab:blue", "tab:orange"), strict=True)):
            rows = [found[network, method].get(init) for method in methods]
            places = [i + 0.4 * side - 0.2 for i, row in enumerate(rows) if row]
            heights, errors = ([float(row[key]) for row in rows if row] for key in ("top1", "error"))
            axis.bar(places, heights, 0.4, yerr=errors, color=colour, label=WORDS[init], capsize=2)
        axis.set_xticks(range(len(methods)), [m.replace(":", ":\n").replace(",order=given", "") for m in methods])
        axis.tick_params(axis="x", labelsize=7)
        axis.axhline(10, color="black", linewidth=0.8, linestyle=":")
        axis.set(title=network, ylabel="top-1, % (dotted: chance)")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=110)


def main() -> None:
    options = table_parser(__doc__)
    options.add_argument("--data")
    options.add_argument("--networks", nargs="+", default=list(NETWORKS))
    options.add_argument("--methods", nargs="+", default=list(METHODS))
    options.add_argument("--inits", nargs="+", default=list(INITS))
    options.add_argument("--images", type=int, default=4000)
    options.add_argument("--epochs", type=int, default=6)
    options.add_argument("--rates", type=float, nargs="+", default=[0.1, 0.02])
    options.add_argument("--precision", default="bf16")
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args()
    torch.set_num_threads(1)
    table = Table(args.results / "scratch.csv", KEYS, COLUMNS)
    for rate in [] if args.show else args.rates:
        for network in args.networks:
            for method in args.methods:
                for init in args.inits:
                    key = {"network": network, "method": method, "init": init, "rate": rate, "epochs": args.epochs}
                    key |= {"trained": args.images, "seed": args.seed}
                    if not table.find(**key):
                        add(table, args, key)
    show(table)
    plot(table, args.results / "scratch.png")


if __name__ == "__main__":
    main()
