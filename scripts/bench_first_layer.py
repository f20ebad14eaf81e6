"""Monochromatic filters for a network's first convolution: error and top-1 against the number of colours.

    python scripts/bench_first_layer.py MODEL --weights FILE --data FOLDER [--cross-fit] [--layer NAME]

Under the four metrics, as the method itself has it (refine 0), with the metric's own search and the last stage refitted
(1) and with all stages improved (3). Errors are relative: of the kernel (Frobenius), and of the layer's output on
calibration images (data covariance). Top-1, and the Kullback-Leibler divergence from the original's answers in nats an
image, are measured on images which gave no statistics. `gained` and `lost` count the images that are right here and
wrong under Frobenius at the same colours and refinement, and the other way round.

`--cross-fit` is for a data set without training images: each half is evaluated with the statistics of the other, so
that every image counts once. Errors are then the means over the halves.
"""

from __future__ import annotations

import dataclasses
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from benchlib import COLOURS, METRICS, Bench, Table, markdown, open_bench, parser
from torch import Tensor, nn

import cnncompress as cc
from cnncompress.metrics import layer_metrics, relative_error
from cnncompress.network.kinds import spec_of
from cnncompress.network.layers import layers_of

COUNTS = (3, 4, 6, 8, 12, 16, 24, 48)
REFINES = (0, 1, 3)
KEYS = ("network", "layer", "metric", "refine", "colours")
COLUMNS = (*KEYS, "kernel_error", "output_error", "divergence", "top1", "images", "gained", "lost")


def answer(bench: Bench, model: nn.Module) -> tuple[Tensor, Tensor]:
    """Of each held-out image: whether a network gets it right, and the divergence of its answer in nats."""
    found, labels = bench.answers(model), torch.cat([y for _, y in bench.held_out])
    return found.argmax(1) == labels, (bench.original.exp() * (bench.original - found)).sum(1)


def folds(bench: Bench, cross_fit: bool) -> list[Bench]:
    """The benchmark, and with `cross_fit` the one in which the two sets of images have changed places."""
    if not cross_fit:
        return [bench]
    parts = {"calibration": bench.held_out, "held_out": bench.calibration}
    return [bench, dataclasses.replace(bench, **parts, fingerprint=f"{bench.fingerprint} the other way round")]


def measure(bench: Bench, layer: str, cache: Path, metric: str, refine: int, colours: int) -> dict[str, Tensor]:
    """The two errors of the layer, and `answer` of the network with the layer replaced."""
    statistics = bench.statistics([layer], cache)
    original = bench.model.get_submodule(layer)
    spec, weight = spec_of(original), original.weight.detach().double()  # type: ignore[union-attr,operator]
    method = f"monochromatic:colours={colours}"
    chosen = cc.plan(bench.model, bench.example, method=method, metric=metric, layers=[layer], force=True)
    small = cc.decompose(bench.model, chosen, statistics=statistics, refine=refine, progress=False)
    dense = small.get_submodule(layer).to_dense().double()  # type: ignore[operator]
    covariance = layer_metrics("data-covariance", spec, statistics[layer])
    right, divergence = answer(bench, small)
    return {
        "kernel_error": torch.tensor([relative_error(layer_metrics("frobenius", spec, None), weight, dense)]),
        "output_error": torch.tensor([relative_error(covariance, weight, dense)]),
        "divergence": divergence,
        "right": right,
    }


def sweep(benches: list[Bench], table: Table, layer: str, cache: Path, refines: list[int], counts: list[int]) -> None:
    """Fill in the rows of the table that are missing."""
    filters = spec_of(benches[0].model.get_submodule(layer)).out_channels
    plain: dict[int, dict[str, Tensor]] = {}  # under Frobenius there is nothing to refine

    def both(metric: str, refine: int, colours: int) -> dict[str, Tensor]:
        parts = [measure(bench, layer, cache, metric, refine, colours) for bench in benches]
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    for refine, colours, metric in product(refines, [c for c in counts if filters % c == 0], METRICS):
        point = dict(zip(KEYS, (benches[0].name, layer, metric, refine, colours), strict=True))
        if table.find(**point):
            continue
        if colours not in plain:
            plain[colours] = both("frobenius", refine, colours)
        found = plain[colours] if metric == "frobenius" else both(metric, refine, colours)
        right, before = found["right"], plain[colours]["right"]
        table.add(
            **point,
            **{key: float(found[key].double().mean()) for key in ("kernel_error", "output_error", "divergence")},
            top1=100 * float(right.double().mean()),
            images=len(right),
            gained=int((right & ~before).sum()),
            lost=int((before & ~right).sum()),
        )


def draw(rows: list[dict[str, str]], original: float, title: str, path: Path) -> None:
    figure, panel = plt.subplots(figsize=(8, 4.2))
    panel.axhline(original, color="black", linestyle=":", linewidth=1, label="original")
    for metric in METRICS:
        for refine, style in ((0, "--"), (1, "-")):
            line = [r for r in rows if r["metric"] == metric and int(r["refine"]) == refine]
            line.sort(key=lambda r: int(r["colours"]))
            x, y = [int(r["colours"]) for r in line], [float(r["top1"]) for r in line]
            label = metric + (" (no refit)" if refine == 0 else "")
            panel.plot(x, y, style, color=COLOURS[metric], marker="o", markersize=3, linewidth=1.3, label=label)
    panel.set_xscale("log", base=2)
    counts = sorted({int(r["colours"]) for r in rows})
    panel.set_xticks(counts, labels=[str(c) for c in counts])
    panel.minorticks_off()
    panel.set(xlabel="colours C'", ylabel="top-1 (%)", title=title)
    panel.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    panel.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def tables(rows: list[dict[str, str]]) -> str:
    """For each quantity a table of colours by metric and refinement."""
    counts = sorted({int(r["colours"]) for r in rows})
    found = {(r["metric"], int(r["refine"]), int(r["colours"])): r for r in rows}
    parts = []
    for key, title, scale in (
        ("top1", "top-1 (%)", 1),
        ("gained", "right, and wrong under Frobenius (images)", 1),
        ("lost", "wrong, and right under Frobenius (images)", 1),
        ("divergence", "divergence (0.01 nats)", 100),
        ("output_error", "relative error of the output (%)", 100),
        ("kernel_error", "relative error of the kernel (%)", 100),
    ):
        lines = [
            [f"{metric}, refine {refine}", *(scale * float(found[metric, refine, c][key]) for c in counts)]
            for metric in METRICS
            for refine in REFINES
        ]
        parts.append(markdown(lines, [f"{title}; colours", *map(str, counts)]))
    return "\n\n".join(parts)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--layer", help="[default: the first convolution]")
    options.add_argument("--colours", type=int, nargs="+", default=list(COUNTS))
    options.add_argument("--refine", type=int, nargs="+", default=list(REFINES))
    options.add_argument("--cross-fit", action="store_true", help="evaluate each half of the images, by the other one")
    args = options.parse_args()
    benches = folds(open_bench(args), args.cross_fit)
    bench = benches[0]
    first = next(n for n, m in layers_of(bench.model).items() if isinstance(m, torch.nn.Conv2d))
    layer = args.layer or first
    table = Table(args.results / f"first_layer_{bench.name}.csv", KEYS, COLUMNS)
    right = torch.cat([answer(b, bench.model)[0] for b in benches])
    original = 100 * float(right.double().mean())
    print(f"original: {original:.1f} % of {len(right)} images")
    sweep(benches, table, layer, args.cache, args.refine, args.colours)
    if len(table.rows) == len(METRICS) * len(REFINES) * len({r["colours"] for r in table.rows}):
        draw(table.rows, original, f"{bench.name} {layer}: monochromatic", table.path.with_suffix(".png"))
        print(tables(table.rows))


if __name__ == "__main__":
    main()
