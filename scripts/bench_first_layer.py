"""Monochromatic filters for a network's first convolution: error and top-1 against the number of colours.

    python scripts/bench_first_layer.py MODEL --weights FILE --data FOLDER [--layer NAME] [--input-size 32]

Under the four metrics, as the method itself has it (refine 0), with the last stage refitted (1) and with all stages
improved (3). Errors are relative: of the kernel (Frobenius), and of the layer's output on calibration images (data
covariance). Top-1, and the Kullback-Leibler divergence from the original's answers in nats an image, are measured on
images which gave no statistics.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from benchlib import COLOURS, METRICS, Bench, Table, markdown, open_bench, parser

import cnncompress as cc
from cnncompress.factored import layers_of, spec_of
from cnncompress.metrics import layer_metrics, relative_error

COUNTS = (3, 4, 6, 8, 12, 16, 24, 48)
REFINES = (0, 1, 3)
KEYS = ("network", "layer", "metric", "refine", "colours")
COLUMNS = (*KEYS, "kernel_error", "output_error", "divergence", "top1", "images")


def sweep(bench: Bench, table: Table, layer: str, cache: Path) -> None:
    statistics = bench.statistics([layer], cache)
    original = bench.model.get_submodule(layer)
    spec, weight = spec_of(original), original.weight.detach().double()  # type: ignore[union-attr,operator]
    covariance = layer_metrics("data-covariance", spec, statistics[layer])
    for refine, metric, colours in ((r, m, c) for r in REFINES for m in METRICS for c in COUNTS):
        point = dict(zip(KEYS, (bench.name, layer, metric, refine, colours), strict=True))
        if table.find(**point) or spec.out_channels % colours:
            continue
        chosen = cc.plan(
            bench.model,
            bench.example,
            method=f"monochromatic:colours={colours}",
            metric=metric,
            layers=[layer],
            force=True,
        )
        small = cc.decompose(bench.model, chosen, statistics=statistics, refine=refine, progress=False)
        dense = small.get_submodule(layer).to_dense().double()  # type: ignore[operator]
        errors = {
            "kernel_error": relative_error(layer_metrics("frobenius", spec, None), weight, dense),
            "output_error": relative_error(covariance, weight, dense),
        }
        table.add(**point, **errors, **bench.measure(small), images=bench.images)


def draw(rows: list[dict[str, str]], original: float, title: str, path: Path) -> None:
    figure, panel = plt.subplots(figsize=(6, 4.2))
    panel.axhline(original, color="black", linestyle=":", linewidth=1, label="original")
    for metric in METRICS:
        for refine, style in ((0, "--"), (1, "-")):
            line = [r for r in rows if r["metric"] == metric and int(r["refine"]) == refine]
            x, y = [int(r["colours"]) for r in line], [float(r["top1"]) for r in line]
            label = metric + (" (no refit)" if refine == 0 else "")
            panel.plot(x, y, style, color=COLOURS[metric], marker="o", markersize=3, linewidth=1.3, label=label)
    panel.set_xscale("log", base=2)
    panel.set_xticks(COUNTS, labels=[str(c) for c in COUNTS])
    panel.minorticks_off()
    panel.set(xlabel="colours C'", ylabel="top-1 (%)", title=title)
    panel.legend(fontsize=8)
    panel.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def tables(rows: list[dict[str, str]]) -> str:
    """For each quantity a table of colours by metric and refinement."""
    found = {(r["metric"], int(r["refine"]), int(r["colours"])): r for r in rows}
    parts = []
    for key, title, scale in (
        ("top1", "top-1 (%)", 1),
        ("divergence", "divergence (0.01 nats)", 100),
        ("output_error", "relative error of the output (%)", 100),
        ("kernel_error", "relative error of the kernel (%)", 100),
    ):
        lines = [
            [f"{metric}, refine {refine}", *(scale * float(found[metric, refine, c][key]) for c in COUNTS)]
            for metric in METRICS
            for refine in REFINES
        ]
        parts.append(markdown(lines, [f"{title}; colours", *map(str, COUNTS)]))
    return "\n\n".join(parts)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--layer", help="[default: the first convolution]")
    args = options.parse_args()
    bench = open_bench(args)
    first = next(n for n, m in layers_of(bench.model).items() if isinstance(m, torch.nn.Conv2d))
    layer = args.layer or first
    table = Table(args.results / f"first_layer_{bench.name}.csv", KEYS, COLUMNS)
    original = bench.top1()
    print(f"original: {original:.1f} % of {bench.images} images")
    sweep(bench, table, layer, args.cache)
    draw(table.rows, original, f"{bench.name} {layer}: monochromatic", table.path.with_suffix(".png"))
    print(tables(table.rows))


if __name__ == "__main__":
    main()
