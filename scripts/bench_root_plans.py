"""Where root modules win in a plan by measured milliseconds: plans with and without them from one table of times.

    python scripts/bench_root_plans.py MODEL --weights FILE --data FOLDER [--runtimes onnxruntime] [--budgets 0.9 0.8]
    python scripts/bench_root_plans.py --show

Layers and chains are timed once a runtime, and both plans choose from these times, not corrected by the times of whole
networks: they differ by nothing but the methods that they may take. Their rises of the loss are predicted under
`kronecker`. The networks of both, fitted and not corrected, are then timed in turns with the original, and their
Kullback-Leibler divergence from its answers is measured on held-out images, in nats an image, with the paired standard
error of the change by `root`. Rows go to `results/root_plans.csv`; a row that is there is not computed again.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

import torch
from benchlib import RESULTS, Bench, Table, markdown, open_bench, parser

import cnncompress as cc
from cnncompress.chains.plan import Budget
from cnncompress.errors import UnreachableError
from cnncompress.latency.machine import complete
from cnncompress.latency.network import latency
from cnncompress.latency.setting import TimingSetting
from cnncompress.network.subject import look_at
from cnncompress.planning import (
    Candidates,
    Choice,
    Guide,
    LatencyModel,
    Planner,
    choices_of,
    make_candidates,
    settled_table,
)

RUNTIMES = ("onnxruntime", "openvino")
WAYS = ("without", "with")
VALUES = (("rise", 4), ("divergence", 4), ("share", 2))  # with their digits in the table
KEYS = ("network", "methods", "runtime", "threads", "budget")
COLUMNS = (*KEYS, "layers", *(f"{what}_{way}" for what, _ in VALUES for way in WAYS))
COLUMNS = (*COLUMNS, "change", "change_error", "images", "original_ms")


def candidates_of(bench: Bench, args: argparse.Namespace) -> dict[str, Candidates]:
    """Chains for all layers, without and with `root` among the methods."""
    subject, found, statistics = look_at(bench.model, bench.example), {}, None
    for way, method in zip(WAYS, (args.methods, f"{args.methods}+root"), strict=True):
        choices, _ = choices_of(subject, Choice(method), {})
        statistics = statistics or bench.statistics(list(choices), args.cache, ["kronecker"])
        found[way] = make_candidates(subject, choices, Guide("kronecker", statistics))
    return found


def add(table: Table, bench: Bench, planners: dict[str, Planner], key: dict[str, object], threads: int) -> None:
    """The row of a budget."""
    try:
        plans = {way: planner.plan(Budget(latency=float(str(key["budget"])))) for way, planner in planners.items()}
    except UnreachableError as error:
        print(f"{key}: {error}")
        return
    networks = {
        way: cc.decompose(bench.model, plan, statistics=planners[way].candidates.guide.statistics, progress=False)
        for way, plan in plans.items()
    }
    setting = TimingSetting(threads=threads).within(str(key["runtime"]))
    times = latency({"original": bench.model, **networks}, bench.example, setting)
    nats = {way: bench.divergences(bench.answers(network)) for way, network in networks.items()}
    change = nats["with"] - nats["without"]
    roots = [name for name, one in plans["with"].layers.items() if one.method == "root"]
    table.add(
        **key, layers=" ".join(roots), **{f"rise_{way}": sum(plan.rises.values()) for way, plan in plans.items()},
        **{f"divergence_{way}": float(values.mean()) for way, values in nats.items()},
        **{f"share_{way}": times[way].median / times["original"].median for way in WAYS}, change=float(change.mean()),
        change_error=float(change.std()) / len(change) ** 0.5, images=len(change), original_ms=times["original"].median,
    )  # fmt: skip


def run(table: Table, args: argparse.Namespace) -> None:
    """All rows of a network that are not there."""
    bench = open_bench(args)
    candidates = candidates_of(bench, args)
    subject = candidates["with"].subject
    for runtime in args.runtimes:
        setting = complete(TimingSetting(threads=args.threads).within(runtime))
        wanted = candidates["with"].wanted
        times = settled_table(bench.model, subject.example, subject.calls, setting, wanted, args.seconds)
        whole = latency({"": bench.model}, bench.example, setting)[""].p10
        planners = {way: Planner(replace(c, times=LatencyModel(times, whole))) for way, c in candidates.items()}
        for budget in args.budgets:
            key: dict[str, object] = {"network": bench.name, "methods": args.methods, "runtime": runtime}
            key |= {"threads": args.threads, "budget": budget}
            if not table.find(**key):
                add(table, bench, planners, key, args.threads)


def show(table: Table) -> None:
    """The rows as a Markdown table."""
    lines = []
    for r in table.rows:
        pairs = [f"{float(r[f'{what}_without']):.{n}f}, {float(r[f'{what}_with']):.{n}f}" for what, n in VALUES]
        change = f"{float(r['change']):+.4f} ± {float(r['change_error']):.4f}"
        lines.append([r["network"], r["runtime"], r["budget"], len(r["layers"].split()), *pairs, change])
    heads = ["network", "runtime", "budget", "layers by root", "predicted rise", "divergence", "time", "by root"]
    print(markdown(lines, heads))


def main() -> None:
    if "--show" in sys.argv:
        return show(Table(RESULTS / "root_plans.csv", KEYS, COLUMNS))
    options = parser(__doc__)
    options.add_argument("--runtimes", nargs="+", default=RUNTIMES)
    options.add_argument("--budgets", nargs="+", type=float, default=[0.9, 0.8, 0.7])
    options.add_argument("--methods", default="spatial-svd+channel-svd+svd+tucker2")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--seconds", type=float, default=90.0, help="for measuring chains, in each runtime")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    table = Table(args.results / "root_plans.csv", KEYS, COLUMNS)
    run(table, args)
    show(table)


if __name__ == "__main__":
    main()
