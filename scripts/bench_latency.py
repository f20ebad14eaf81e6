"""Budgets of measured latency in each runtime: what a plan predicts for the whole network, and what is measured.

    python scripts/bench_latency.py [--networks resnet18 ...] [--runtimes torch openvino:int8 ...] [--budgets 0.7 0.5]
    python scripts/bench_latency.py --show

Random weights, which serve for time; candidates are chosen by the relative error in the Frobenius norm. A plan is made
and corrected as `cnncompress decompose` does, and then its network is exported and timed in turns with the original, as
a run is. Where no plan is so fast, `least` is the smallest share that is predicted. `prepare` are the seconds that the
times of layers and chains took, and `plan` those of planning with the whole network timed; times are kept in the cache
of the package, so that they are few in a second run. Rows go to `results/latency.csv`.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import torch
from benchlib import Table, markdown, table_parser

import cnncompress as cc
from cnncompress.chains.plan import Budget, Plan
from cnncompress.errors import UnreachableError
from cnncompress.latency.busy import wait_for_quiet
from cnncompress.latency.machine import complete
from cnncompress.latency.network import latency
from cnncompress.latency.setting import TimingSetting
from cnncompress.network.subject import Subject, look_at
from cnncompress.pipeline.asked import Aim
from cnncompress.pipeline.plan import SECONDS
from cnncompress.pipeline.timing import TimedFormats, latency_model, originals_in, time_result
from cnncompress.planning import Candidates, Choice, Guide, Planner, choices_of, make_candidates

NETWORKS = ("resnet18", "resnet50", "vgg16", "mobilenet_v2")
RUNTIMES = ("torch", "onnxruntime", "openvino", "openvino:bf16", "openvino:int8")
KEYS = ("network", "runtime", "batch", "threads", "budget")
TIMES = ("original_ms", "ms", "p10", "p90")
COLUMNS = (*KEYS, "predicted", "measured", "least", "macs", *TIMES, "layers", "prepare", "plan")


def candidates_of(name: str) -> Candidates:
    """Chains for all layers of a network with random weights."""
    loaded = cc.load_model(name, "none")
    subject = look_at(loaded.model.eval(), torch.zeros(1, 3, *loaded.preprocessing.size))
    choices, _ = choices_of(subject, Choice(), {})
    return make_candidates(subject, choices, Guide())


def planner_in(candidates: Candidates, setting: TimingSetting) -> Planner:
    """Plans by the times of layers and chains in a setting."""
    wait_for_quiet([setting])
    originals = originals_in(candidates.subject, setting, "")
    timed = TimedFormats(originals, latency(originals, candidates.subject.example, setting))
    return Planner(replace(candidates, times=latency_model(candidates, timed, setting, "", SECONDS)))


def measured(subject: Subject, plan: Plan, budget: Budget, setting: TimingSetting) -> dict[str, float]:
    """Milliseconds of the network of a plan and of the original, in turns."""
    small = cc.decompose(subject.network, plan, refine=0, progress=False)
    result = time_result(subject.network, small, plan, subject.example, Aim(budget), [setting])
    before, after = result.times[0]
    found = {"measured": after.median / before.median, "original_ms": before.median}
    return found | {"ms": after.median, "p10": after.p10, "p90": after.p90}


def add(table: Table, candidates: Candidates, planner: Planner, key: dict[str, object], setting: TimingSetting) -> None:
    """The row of a budget."""
    budget, start = Budget(latency=float(str(key["budget"]))), time.perf_counter()
    row: dict[str, object] = dict.fromkeys(COLUMNS, "")
    try:
        plan = planner.plan(budget)
    except UnreachableError as error:
        table.add(**row | key | {"least": error.shares["latency"], "plan": time.perf_counter() - start})
        return
    row |= {
        "plan": time.perf_counter() - start,
        "layers": len(plan.layers),
        **measured(candidates.subject, plan, budget, setting),
    }
    table.add(**row | key | {"predicted": plan.achieved["latency"], "macs": plan.achieved["macs"]})


def run(table: Table, name: str, args: argparse.Namespace) -> None:
    """All rows of a network that are not there."""
    candidates = None
    for runtime in args.runtimes:
        setting = complete(TimingSetting(batch=args.batch, threads=args.threads).within(runtime))
        key: dict[str, object] = {"network": name, "runtime": runtime, "batch": args.batch, "threads": args.threads}
        missing = [one for budget in args.budgets if not table.find(**(one := {**key, "budget": budget}))]
        if not missing:
            continue
        candidates = candidates or candidates_of(name)
        start = time.perf_counter()
        planner = planner_in(candidates, setting)
        seconds = time.perf_counter() - start
        for one in missing:
            add(table, candidates, planner, {**one, "prepare": seconds}, setting)


def show(table: Table) -> None:
    """The rows as a Markdown table."""
    lines = []
    for r in table.rows:
        shares = [f"{float(r[c]):.2f}" if r[c] else "" for c in ("predicted", "measured", "macs")]
        if r["least"]:
            shares[0] = f"{float(r['least']):.2f} at least"
        times = [f"{float(r[c]):.2f}" if r[c] else "" for c in ("original_ms", "ms")]
        lines.append([r["network"], r["runtime"], r["budget"], *shares, *times])
    heads = ["network", "runtime", "budget", "predicted", "measured", "its MACs", "original, ms", "ms"]
    print(markdown(lines, heads))


def main() -> None:
    options = table_parser(__doc__)
    options.add_argument("--networks", nargs="+", default=NETWORKS)
    options.add_argument("--runtimes", nargs="+", default=RUNTIMES)
    options.add_argument("--budgets", nargs="+", type=float, default=[0.7, 0.5])
    options.add_argument("--batch", type=int, default=1)
    options.add_argument("--threads", type=int, default=2)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    table = Table(args.results / "latency.csv", KEYS, COLUMNS)
    for name in () if args.show else args.networks:
        run(table, name, args)
    show(table)


if __name__ == "__main__":
    main()
