"""Budgets of measured latency: what a plan predicts for the whole network, and what is measured.

    python scripts/bench_latency.py [--networks resnet18 ...] [--batches 1 8] [--threads 2] [--budget 0.6]
    python scripts/bench_latency.py --show

Random weights, which serve for time. Beside each plan within the budget stands the plan of the fewest MACs with no
larger estimated error (relative, Frobenius), as a budget of MACs would choose it. All three networks are measured in
turns. Rows go to `results/latency.csv`; times of layers are kept in the cache of the package, so that a second run
plans at once (`seconds` tells how long planning took in this one).
"""

from __future__ import annotations

import time

import torch
from benchlib import Table, markdown, table_parser

import cnncompress as cc
from cnncompress.chains.plan import Budget, Plan
from cnncompress.latency.clock import Rounds
from cnncompress.latency.network import latency
from cnncompress.latency.setting import TimingSetting
from cnncompress.network.subject import look_at
from cnncompress.pipeline.formats import fastest, in_formats
from cnncompress.planning import (
    Choice,
    Guide,
    LatencyModel,
    Planner,
    choices_of,
    make_candidates,
    network_clock,
    settled_table,
)

NETWORKS = ("resnet18", "resnet50", "vgg16", "mobilenet_v2", "squeezenet1_0")
KEYS = ("network", "batch", "threads", "budget")
MEASURED = ("original_ms", "latency_ms", "latency_p10", "latency_p90", "macs_ms")
COLUMNS = (*KEYS, "predicted", "measured", "macs", "error", "same_error_macs", "same_error_measured", *MEASURED)
COLUMNS = (*COLUMNS, "layers", "seconds")
TRIALS = 8  # of the bisection for the plan of the same error


def fewest_macs(planner: Planner, error: float) -> Plan:
    """The plan of the fewest MACs whose estimated error is at most `error`, to 1 / 2^`TRIALS` of the MACs."""
    low, high, best = 0.0, 1.0, planner.plan(Budget(macs=1.0))
    for _ in range(TRIALS):
        share = (low + high) / 2
        try:
            plan = planner.plan(Budget(macs=share))
        except cc.UsageError:
            low = share
            continue
        if sum(plan.rises.values()) <= error:
            best, high = plan, share
        else:
            low = share
    return best


def run(table: Table, name: str, batch: int, threads: int, budget: float) -> None:
    """One network in one setting."""
    torch.set_num_threads(threads)
    loaded = cc.load_model(name, "none")
    model, example = loaded.model.eval(), torch.zeros(1, 3, *loaded.preprocessing.size)
    start = time.perf_counter()
    formats = in_formats(model, example)
    setting = TimingSetting(batch=batch, threads=threads)
    timed = latency(formats, example, setting)
    best = fastest(timed)
    model, before = formats[best], timed[best].median
    subject = look_at(model, example)
    choices, _ = choices_of(subject, Choice(), {})
    table_of_times = settled_table(model, example, subject.calls, setting)
    clock = network_clock(model, example, before, setting)
    times = LatencyModel(table_of_times, before, clock=clock)
    planner = Planner(make_candidates(subject, choices, Guide(), times))
    try:
        plan = planner.plan(Budget(latency=budget))
    except cc.UsageError as error:
        print(f"{name}, batch {batch}: {error}")
        return
    seconds = time.perf_counter() - start
    error = sum(plan.rises.values())
    other = fewest_macs(planner, error)
    networks = {"original": model}
    for label, found in (("latency", plan), ("macs", other)):
        networks[label] = cc.decompose(model, found, refine=0, progress=False)
    timed = latency(networks, example, setting, Rounds(least=30, seconds=3.0))
    ms = {label: t.median for label, t in timed.items()}
    table.add(
        network=name, batch=batch, threads=threads, budget=budget, layers=len(plan.layers), seconds=seconds,
        predicted=plan.achieved["latency"], measured=ms["latency"] / ms["original"], macs=plan.achieved["macs"],
        error=error, same_error_macs=other.achieved["macs"], same_error_measured=ms["macs"] / ms["original"],
        original_ms=ms["original"], latency_ms=ms["latency"], latency_p10=timed["latency"].p10,
        latency_p90=timed["latency"].p90, macs_ms=ms["macs"],
    )  # fmt: skip


def show(table: Table) -> None:
    """The rows as a Markdown table."""
    columns = ("predicted", "measured", "macs", "same_error_macs", "same_error_measured")
    lines = [[r["network"], r["batch"], *(f"{float(r[c]):.2f}" for c in columns)] for r in table.rows]
    heads = ["network", "batch", "predicted", "measured", "its MACs", "MACs plan of that error", "its measured time"]
    print(markdown(lines, heads))


def main() -> None:
    options = table_parser(__doc__)
    options.add_argument("--networks", nargs="+", default=NETWORKS)
    options.add_argument("--batches", nargs="+", type=int, default=(1, 8))
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--budget", type=float, default=0.6)
    args = options.parse_args()
    table = Table(args.results / "latency.csv", KEYS, COLUMNS)
    for name in () if args.show else args.networks:
        for batch in args.batches:
            if not table.find(network=name, batch=batch, threads=args.threads, budget=args.budget):
                run(table, name, batch, args.threads, args.budget)
    show(table)


if __name__ == "__main__":
    main()
