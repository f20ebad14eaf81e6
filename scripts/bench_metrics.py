"""Top-1 against MACs, without any fine-tuning, for several methods under the four metrics.

    python scripts/bench_metrics.py MODEL --weights FILE --data FOLDER [--input-size 32] [--images 2000]
    python scripts/bench_metrics.py --show

The inner 3×3 layers are decomposed, all at the same fraction of their full rank, which is searched so that the whole
network keeps a given share of its MACs. Each point is a row of `results/metrics_NAME.csv`; a sweep that was interrupted
goes on where it was. `--show` draws the plot and prints the table of all networks that have such a file.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
from benchlib import COLOURS, METRICS, RESULTS, Bench, Table, markdown, open_bench, parser, read_csv

import cnncompress as cc
from cnncompress.chains.plan import Plan

METHODS = ("spatial-svd", "channel-svd", "bicluster-svd", "tucker2")
TARGETS = (0.9, 0.75, 0.66, 0.5)
TOLERANCE = 0.02  # of the network's MACs, between the target and the nearest plan
KEYS = ("network", "method", "metric", "refine", "target")
COLUMNS = (*KEYS, "fraction", "macs", "params", "top1", "images", "seconds")


def plan_for(bench: Bench, method: str, metric: str, target: float, layers: list[str]) -> tuple[float, float, Plan]:
    """(Fraction of the rank, share of the network's MACs, plan) closest to a share of MACs, by bisection."""
    before = cc.profile(bench.model, bench.example)

    def at(fraction: float) -> tuple[float, float, Plan]:
        chosen = cc.plan(bench.model, bench.example, method=method, rank=fraction, metric=metric, layers=layers)
        saved = sum(macs[0] - macs[1] for macs in (p.macs for p in chosen.layers.values()))
        return fraction, 1 - saved / before.macs, chosen

    low, high, tried = 1e-3, 1.0, [at(1e-3)]
    for _ in range(12):
        tried.append(at((low + high) / 2))
        low, high = (low, tried[-1][0]) if tried[-1][1] > target else (tried[-1][0], high)
    return min(tried, key=lambda found: abs(found[1] - target))


def sweep(bench: Bench, table: Table, cache: Path, refine: int, methods: list[str]) -> None:
    layers = bench.inner_layers()
    statistics = bench.statistics(layers, cache)
    if table.find(network=bench.name, method="original", metric="", refine="", target=1) is None:
        point = dict(zip(KEYS, (bench.name, "original", "", "", 1), strict=True))
        table.add(**point, fraction="", macs=1.0, params=1.0, top1=bench.top1(), images=bench.images, seconds="")
    full = cc.profile(bench.model, bench.example)
    for method, target, metric in ((m, t, q) for m in methods for t in TARGETS for q in METRICS):
        point = dict(zip(KEYS, (bench.name, method, metric, refine, target), strict=True))
        if table.find(**point):
            continue
        fraction, share, chosen = plan_for(bench, method, metric, target, layers)
        if abs(share - target) > TOLERANCE:
            table.add(**point, fraction=fraction, macs=share, params="", top1="", images="", seconds="")
            continue
        start = time.perf_counter()
        small = cc.decompose(bench.model, chosen, statistics=statistics, refine=refine)
        seconds = time.perf_counter() - start
        cost = cc.profile(small, bench.example)
        found = {"macs": cost.macs / full.macs, "params": cost.params / full.params, "top1": bench.top1(small)}
        table.add(**point, fraction=fraction, **found, images=bench.images, seconds=seconds)


def show(folder: Path, method: str = "spatial-svd") -> None:
    """One panel a network, one line a metric; and the table of all methods."""
    files = sorted(folder.glob("metrics_*.csv"), key=lambda path: (len(path.stem), path.stem))
    figure, panels = plt.subplots(1, len(files), figsize=(4 * len(files), 3.6), squeeze=False)
    for panel, path in zip(panels[0], files, strict=True):
        rows = read_csv(path)
        original = next(row for row in rows if row["method"] == "original")
        name, images = original["network"], original["images"]
        panel.axhline(float(original["top1"]), color="black", linestyle="--", linewidth=1, label="original")
        for metric in METRICS:
            line = [r for r in rows if (r["method"], r["metric"], r["refine"]) == (method, metric, "1") and r["top1"]]
            points = sorted((100 * float(r["macs"]), float(r["top1"])) for r in line)
            panel.plot(*zip(*points, strict=True), marker="o", markersize=4, color=COLOURS[metric], label=metric)
        panel.set(title=f"{name} ({images} images)", xlabel="MACs kept (%)", ylim=(0, None))
        panel.grid(alpha=0.3)
        print(f"\n{name}, {images} images, original {float(original['top1']):.1f} %:\n\n{table_of(rows)}")
    panels[0][0].set_ylabel("top-1 (%)")
    figure.suptitle(f"{method} of the 3×3 layers, without fine-tuning")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="lower center", ncols=5, frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(folder / "metrics.png", dpi=110)


def table_of(rows: list[dict[str, str]]) -> str:
    """Top-1 by method and share of MACs, one column a metric; an empty cell where the share cannot be reached."""
    found = {(r["method"], r["target"], r["metric"]): r["top1"] for r in rows if r["refine"] == "1"}
    lines = []
    for method in METHODS:
        for target in map(str, TARGETS):
            values = [found.get((method, target, metric)) for metric in METRICS]
            if any(v is not None for v in values):
                lines.append([method, f"{100 * float(target):.0f} %", *(float(v) if v else None for v in values)])
    return markdown(lines, ["method", "MACs kept", *METRICS])


def main() -> None:
    if sys.argv[1:2] == ["--show"]:
        show(RESULTS)
        return
    options = parser(__doc__)
    options.add_argument("--refine", type=int, default=1)
    options.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    args = options.parse_args()
    bench = open_bench(args)
    table = Table(args.results / f"metrics_{bench.name}.csv", KEYS, COLUMNS)
    sweep(bench, table, args.cache, args.refine, args.methods)
    show(args.results)


if __name__ == "__main__":
    main()
