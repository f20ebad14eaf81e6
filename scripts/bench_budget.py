"""Top-1 within a budget of MACs, without labels and without fine-tuning, and what each part of the method gives.

    python scripts/bench_budget.py MODEL --weights FILE --data FOLDER [--input-size 32] --budgets 0.66 0.5 0.33
    python scripts/bench_budget.py --show

From one line of the ablation to the next, one thing changes: the metric, with one share of the rank for all inner 3×3
layers; ranks and methods from a plan of SVDs alone, corrected in every way; ranks and methods from a plan of all
methods; biases fitted to the real inputs in network order; whole chains fitted so; what rectifications hide taken into
account; convolutions that stay fitted too; batch normalisation estimated again; gradient steps without labels instead
(`--steps` a block). Calibration images are never evaluated on. Rows go to `results/budget_NAME.csv`; a sweep that was
interrupted goes on where it was. `--show` draws the plot and prints the tables of all networks that have such a file.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from bench_metrics import plan_for
from benchlib import RESULTS, Bench, Table, markdown, open_bench, parser, read_csv
from torch import nn

import cnncompress as cc
from cnncompress.chains.plan import Plan
from cnncompress.correction import Correction, decompose_in_order, reconstruct, reestimate
from cnncompress.network.divergence import Answers, to_check
from cnncompress.network.layers import layers_of

SVDS = "spatial-svd+spatial-svd:first=horizontal+channel-svd+svd"
UNIFORM = ("frobenius", "data-covariance", "kronecker")
STEPS = (
    "uniform, frobenius",
    "uniform, frobenius, bias",
    "uniform, frobenius, bias, batch norm",
    "uniform, data-covariance",
    "uniform, kronecker",
    "planned from SVDs, refit, rectified, all",
    "planned",
    "planned, bias",
    "planned, refit",
    "planned, refit, rectified",
    "planned, refit, rectified, all",
    "planned, refit, rectified, all, batch norm",
    "planned, refit, rectified, all, reconstructed",
)
KEYS = ("network", "step", "target")
COLUMNS = (*KEYS, "macs", "params", "top1", "divergence", "images", "seconds")


Made = Iterator[tuple[str, nn.Module, float]]


def networks(bench: Bench, target: float, statistics: Any, steps: int, wanted: Collection[str]) -> Made:
    """The network after each step of the ablation that is wanted, with the seconds from the statistics to it."""
    images = torch.cat([x for x, _ in bench.calibration])
    for metric in UNIFORM:
        if any(step.startswith(f"uniform, {metric}") for step in wanted):
            yield from uniform(bench, target, statistics, metric, images)
    checked = to_check(images, cc.profile(bench.model, bench.example).total_macs)
    for name, method in (("planned from SVDs", SVDS), ("planned", "auto")):
        asked = [step for step in wanted if step == name or step.startswith(f"{name}, ")]
        if asked:
            start = time.perf_counter()
            given = {"budget": cc.Budget(macs=target), "metric": "kronecker", "statistics": statistics}
            plan = cc.plan(bench.model, bench.example, **given, images=checked, method=method)
            seconds = time.perf_counter() - start
            for step, small, more in corrected(bench, plan, statistics, images, checked, name, asked, steps):
                yield step, small, seconds + more


def uniform(bench: Bench, target: float, statistics: Any, metric: str, images: torch.Tensor) -> Made:
    """One share of the rank for all inner 3×3 layers; under Frobenius with its biases and norms mended too."""
    start = time.perf_counter()
    fraction, _, plan = plan_for(bench, "spatial-svd", metric, target, bench.inner_layers())
    yield f"uniform, {metric}", _fit(bench, plan, statistics, 1), time.perf_counter() - start
    if metric != "frobenius":
        return
    same = {"method": "spatial-svd", "rank": fraction, "layers": bench.inner_layers()}
    plan = cc.plan(bench.model, bench.example, **same, images=images[:1])  # chains with a bias
    biases = Correction(refit=False, refine=1)
    small = decompose_in_order(bench.model, plan, images, correction=biases, progress=False)
    yield "uniform, frobenius, bias", small, time.perf_counter() - start
    normed = reestimate(small, images)
    if normed is not None:
        yield "uniform, frobenius, bias, batch norm", normed, time.perf_counter() - start


def corrected(
    bench: Bench,
    plan: Plan,
    statistics: Any,
    images: torch.Tensor,
    checked: torch.Tensor,
    name: str,
    wanted: Collection[str],
    steps: int,
) -> Made:
    """The network of a plan after each correction that is wanted, with the seconds from the plan to it."""
    if name in wanted:
        start = time.perf_counter()
        yield name, _fit(bench, plan, statistics, 4), time.perf_counter() - start
    whole = f"{name}, refit, rectified, all"
    corrections = {
        f"{name}, bias": Correction(refit=False),
        f"{name}, refit": Correction(rounds=1),
        f"{name}, refit, rectified": Correction(),
        whole: Correction(adjust=list(plan.kept)),
    }
    later = [step for step in wanted if step.startswith(f"{whole}, ")]
    for step, how in corrections.items():
        if step in wanted or (later and step == whole):
            start = time.perf_counter()
            small = decompose_in_order(bench.model, plan, images, statistics=statistics, correction=how, progress=False)
            seconds = time.perf_counter() - start
            yield step, small, seconds
    for step in later:
        start = time.perf_counter()
        if step.endswith("batch norm"):
            other, answers = reestimate(small, images), Answers(bench.model, checked)
            better = other is not None and answers.divergence(other) < answers.divergence(small)
            found = other if better and other is not None else small
        else:
            found, notes = reconstruct(bench.model, small, images, steps, progress=False)
            print(*notes, sep="\n")
        yield step, found, seconds + time.perf_counter() - start


def _fit(bench: Bench, plan: Plan, statistics: Any, refine: int) -> nn.Module:
    return cc.decompose(bench.model, plan, statistics=statistics, refine=refine, progress=False)


def sweep(bench: Bench, table: Table, targets: list[float], cache: Path, steps: int, only: list[str]) -> None:
    before = cc.profile(bench.model, bench.example)
    original = dict(zip(KEYS, (bench.name, "original", 1.0), strict=True))
    if not table.find(**original):
        measured = {**bench.measure(bench.model), "images": bench.images}
        table.add(**original, macs=1.0, params=1.0, seconds="", **measured)
    start = time.perf_counter()
    statistics = bench.statistics(list(layers_of(bench.model)), cache, ("kronecker",))
    print(f"statistics: {time.perf_counter() - start:.1f} s")
    for target in targets:
        asked = [s for s in (STEPS if steps else STEPS[:-1]) if s in only or not only]
        wanted = [step for step in asked if not table.find(network=bench.name, step=step, target=target)]
        for step, small, seconds in networks(bench, target, statistics, steps, wanted) if wanted else ():
            if step not in wanted:
                continue
            after = cc.profile(small, bench.example)
            shares = {"macs": after.total_macs / before.total_macs, "params": after.params / before.params}
            found = bench.measure(small)
            table.add(
                network=bench.name, step=step, target=target, images=bench.images, seconds=seconds, **shares, **found
            )


def show(folder: Path) -> None:
    """The tables and the plot of all networks."""
    files = sorted(folder.glob("budget_*.csv"))
    rows = {path.stem.removeprefix("budget_"): read_csv(path) for path in files}
    for name, found in rows.items():
        targets = sorted({float(r["target"]) for r in found if r["step"] != "original"}, reverse=True)
        top1 = {(r["step"], float(r["target"])): float(r["top1"]) for r in found}
        lines = [[step, *(top1.get((step, t)) for t in targets)] for step in STEPS]
        print(markdown(lines, [f"{name} ({top1['original', 1.0]:.1f}); MACs", *map(str, targets)]), end="\n\n")
    draw(rows, folder / "budget.png")


def draw(rows: dict[str, list[dict[str, str]]], path: Path) -> None:
    chosen = {
        "uniform, frobenius": ("tab:gray", "uniform ranks, Frobenius"),
        "uniform, kronecker": ("tab:orange", "uniform ranks, kronecker"),
        "planned from SVDs, refit, rectified, all": ("tab:cyan", "planned from SVDs and refitted"),
        "planned, refit, rectified, all": ("tab:blue", "planned and refitted"),
        "planned, refit, rectified, all, reconstructed": ("tab:red", "and reconstructed"),
    }
    figure, panels = plt.subplots(1, len(rows), figsize=(4.2 * len(rows), 3.8), squeeze=False)
    for panel, (name, found) in zip(panels[0], rows.items(), strict=True):
        original = next(r for r in found if r["step"] == "original")
        panel.axhline(float(original["top1"]), color="black", linestyle=":", linewidth=1, label="original")
        for step, (colour, label) in chosen.items():
            line = sorted((float(r["macs"]), float(r["top1"])) for r in found if r["step"] == step)
            panel.plot(*zip(*line, strict=True), color=colour, marker="o", markersize=4, linewidth=1.4, label=label)
        panel.set(xlabel="share of the MACs", ylabel="top-1 (%)", title=name)
        panel.grid(alpha=0.3)
    panels[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    if "--show" in sys.argv:
        return show(RESULTS)
    options = parser(__doc__)
    options.add_argument("--budgets", type=float, nargs="+", required=True)
    options.add_argument("--steps", type=int, default=300, help="of the reconstruction, a block")
    options.add_argument("--only", nargs="+", default=[], choices=STEPS, help="lines of the ablation")
    args = options.parse_args()
    bench = open_bench(args)
    table = Table(args.results / f"budget_{bench.name}.csv", KEYS, COLUMNS)
    sweep(bench, table, args.budgets, args.cache, args.steps, args.only)


if __name__ == "__main__":
    main()
