"""Other tools and cnncompress on the same network, at the same MACs: top-1 without fine-tuning, latency, seconds.

    pip install -e ".[peers]"
    python scripts/compare_peers.py MODEL --weights FILE --data FOLDER [--input-size 32] --budgets 0.66 0.5
    python scripts/compare_peers.py MODEL --weights FILE --data FOLDER [--input-size 32] --latency
    python scripts/compare_peers.py --show

The first command makes the networks, keeps them under `build/peers`, and adds a row for each to `results/peers.csv`;
rows that are there are not made again. The second measures the latency of all that was kept of the network, each in
turns with the original and both in the memory format that they are faster in, and fills it into the rows. The third
prints the table.

Every tool has the same calibration images, with labels, and none of the images that are evaluated on. A peer is tried
in many ways (`peers/aimet.py`, `peers/pruning.py` and `peers/tucker.py` tell which); each network is scored on the
calibration images with and without BatchNorm statistics re-estimated on them, and the one with the most right answers
goes into the table. The column `without BN` has the best of those without re-estimation. Peers may keep 0.2 % of the
original's MACs more than the budget. Seconds are processor seconds of one thread, for the network shown alone: with
the search of its ranks, without loading images, the choice between variants, and evaluation or timing.
In `results/peers.csv` AIMET searched on 1,000 images for resnet20, 200 for resnet56 and 50 for squeezenet1_0
(`--search-images`), since it evaluates nine networks a layer; the other steps had 1,000 and 250.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import importlib
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from benchlib import RESULTS, Bench, as_text, markdown, open_bench, parser, read_csv
from peers.shared import Score, Task, has_batchnorm, keep, kept, reestimated
from torch import nn

import cnncompress as cc
from cnncompress.latency.network import latency
from cnncompress.latency.setting import TimingSetting
from cnncompress.network.copying import clone
from cnncompress.network.memory_format import MEMORY_FORMATS, to_memory_format

THREADS = 2
TOOLS = {
    "aimet": "AIMET 2.42",
    "pruning": "Torch-Pruning 1.6",
    "tucker": "Tucker-2 (TensorLy)",
    "cnncompress": "cnncompress",
    "cnncompress-guarded": "cnncompress, in the original's time",
    "cnncompress-timed": "cnncompress, and a budget of latency",
}
OWN = {
    "cnncompress": "--allow-slower",
    "cnncompress-guarded": f"--threads {THREADS}",
    "cnncompress-timed": f"--budget latency=0.95 --threads {THREADS}",
}
KEYS = ("network", "budget", "tool")
MADE = ("variant", "macs", "params", "top1", "top1_without_bn", "images", "seconds")
TIMED = ("ms_batch1", "ratio_batch1", "ms_batch8", "ratio_batch8")
COLUMNS = (*KEYS, *MADE, *TIMED)
BATCHES = (1, 8)
FILE = RESULTS / "peers.csv"
OWN_SECONDS = re.compile(r"([a-z ]+?) ([\d.]+) s[,;]")


@dataclasses.dataclass
class Candidate:
    """A network that a tool made, how it did on the calibration images, and the seconds it took."""

    variant: str
    network: nn.Module
    score: Score
    seconds: float
    bn: bool = False

    @property
    def name(self) -> str:
        """The variant, and whether BatchNorm was re-estimated."""
        return f"{self.variant}{' + BN' if self.bn else ''}"


def candidates(task: Task, tool: str) -> list[Candidate]:
    """All that a peer makes for a budget, each as it is and with BatchNorm re-estimated; failures are printed."""
    found = []
    for variant, make, before in importlib.import_module(f"peers.{tool}").variants(task):
        start = time.process_time()
        try:
            network = make()
        except Exception as error:  # a peer may fail in any way, and the others go on
            print(f"{tool}, {variant}: {type(error).__name__}: {str(error)[:200]}", flush=True)
            continue
        seconds = before + time.process_time() - start
        found.append(Candidate(variant, network, task.score(network), seconds))
        if has_batchnorm(network):
            start = time.process_time()
            network = reestimated(network, task.bench.calibration)
            seconds += time.process_time() - start
            found.append(Candidate(variant, network, task.score(network), seconds, bn=True))
        for one in found[-2:] if has_batchnorm(network) else found[-1:]:
            done = f"{task.share(one.network):.4f} of the MACs, {one.score.top1:.1f} %, {one.score.loss:.4f} nats"
            print(f"{tool}, {one.name}: {done}, {one.seconds:.1f} s", flush=True)
    if not found:
        raise RuntimeError(f"{tool}: no variant gave a network of {task.budget} of the MACs")
    return found


def rank(candidate: Candidate) -> tuple[float, float]:
    """The best is the greatest: top-1, then the loss."""
    return candidate.score.top1, -candidate.score.loss


def make_peer(task: Task, tool: str, path: Path) -> dict[str, object]:
    """The best network of a peer, kept in a file; its row."""
    found = candidates(task, tool)
    best, plain = max(found, key=rank), max((c for c in found if not c.bn), key=rank)
    keep(best.network, task.bench.model, path)
    tried = [{"variant": c.name, "seconds": c.seconds, **dataclasses.asdict(c.score)} for c in found]
    path.with_suffix(".json").write_text(json.dumps(tried, indent=1))
    return {
        "variant": best.name,
        **measured(task, best.network),
        "top1_without_bn": task.bench.top1(plain.network),
        "seconds": best.seconds,
    }


def make_own(task: Task, args: argparse.Namespace, options: str, path: Path) -> dict[str, object]:
    """The run that cnncompress makes; its row."""
    words = ["decompose", args.model, "--weights", args.weights, "--data", args.data, "--out", str(path), "--force"]
    words += ["--budget", f"macs={task.budget}", "--calibration-images", str(args.calibration_images)]
    words += ["--input-size", str(args.input_size)] if args.input_size else []
    words += options.split()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "cnncompress", *words], env=environment, stderr=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    phases = {name.strip(): float(value) for name, value in OWN_SECONDS.findall(done.stderr.split("time:")[-1])}
    measuring = sum(phases.get(name, 0.0) for name in ("evaluate", "latency")) / max(sum(phases.values()), 1e-9)
    row = {"variant": options, "top1_without_bn": "", "seconds": seconds * (1 - measuring)}
    return row | measured(task, cc.load(path, trust_code=True))


def measured(task: Task, network: nn.Module) -> dict[str, object]:
    """Cost, and accuracy on the images that nothing was fitted to."""
    bench = task.bench
    cost, full = cc.profile(network, bench.example), cc.profile(bench.model, bench.example)
    found = {"macs": cost.macs / full.macs, "params": cost.params / full.params}
    return {**found, "top1": bench.top1(network), "images": bench.images}


def place(row: dict[str, str]) -> tuple[int, str, float, int]:
    """Where a row stands in the table: by network, budget and tool."""
    name = row["network"]
    return len(name), name, -float(row["budget"]), [*TOOLS, "original"].index(row["tool"])


def write(rows: Sequence[dict[str, str]], path: Path) -> None:
    """The whole table, in place of the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".part").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(sorted(rows, key=place))
    path.with_suffix(".part").replace(path)


def add(path: Path, **values: object) -> None:
    """Put a row in, in place of one with the same key."""
    row = {c: as_text(values.get(c, "")) for c in COLUMNS}
    others = [r for r in read_csv(path) if any(r[k] != row[k] for k in KEYS)]
    write([*others, row], path)
    print(" ".join(f"{k}={v}" for k, v in row.items()), flush=True)


def make(bench: Bench, args: argparse.Namespace) -> None:
    """All rows of a network that are not there yet."""
    there = {tuple(row[k] for k in KEYS) for row in read_csv(args.file)}
    folder = args.cache / bench.name
    if (bench.name, "1", "original") not in there:
        row = measured(Task(bench, 1, folder), bench.model)
        add(args.file, network=bench.name, budget=1, tool="original", **row)
    for budget in args.budgets:
        task = Task(bench, budget, folder, args.search_images)
        for tool in args.tools:
            if (bench.name, str(budget), tool) in there:
                continue
            if tool in OWN:
                row = make_own(task, args, f"{OWN[tool]} {args.options}".strip(), folder / f"{budget}-{tool}")
            else:
                row = make_peer(task, tool, folder / f"{budget}-{tool}.pt")
            add(args.file, network=bench.name, budget=budget, tool=tool, **row)


def time_all(bench: Bench, args: argparse.Namespace) -> None:
    """Latency of everything kept of a network into the rows, each in turns with the original alone."""
    rows, folder = read_csv(args.file), args.cache / bench.name
    for row in rows:
        if row["network"] != bench.name:
            continue
        path = folder / f"{row['budget']}-{row['tool']}"
        models = {"original": bench.model}
        if row["tool"] in OWN:
            models["compressed"] = cc.load(path, trust_code=True)
        elif row["tool"] != "original":
            models["compressed"] = kept(bench.model, path.with_name(f"{path.name}.pt"))
        both = {f"{n} {f}": to_memory_format(clone(m), f) for n, m in models.items() for f in MEMORY_FORMATS}
        for batch in BATCHES:
            found = latency(both, bench.example, TimingSetting(batch=batch, threads=THREADS))
            best = {n: min(found[f"{n} {f}"].median for f in MEMORY_FORMATS) for n in models}
            *_, mine = best.values()
            row[f"ms_batch{batch}"] = f"{mine:.4g}"
            row[f"ratio_batch{batch}"] = f"{mine / best['original']:.4g}"
        print(" ".join(f"{k}={row[k]}" for k in (*KEYS, *TIMED)), flush=True)
    write(rows, args.file)


def show(path: Path) -> None:
    """The table of all networks."""
    rows = read_csv(path)
    headers = ["network", "MACs kept", "tool", "way", "top-1", "without BN", "latency, 1 image", "8 images", "seconds"]
    originals = {row["network"]: f"{row['network']} ({float(row['top1']):.1f})" for row in rows if row["budget"] == "1"}
    lines = []
    for row in rows:
        if row["tool"] != "original":
            numbers = [float(row[c]) if row[c] else None for c in ("top1", "top1_without_bn")]
            times = [f"{float(row[c]):.2f}×" if row[c] else "" for c in ("ratio_batch1", "ratio_batch8")]
            first = [originals[row["network"]], f"{float(row['macs']):.3f}", TOOLS[row["tool"]], row["variant"]]
            lines.append([*first, *numbers, *times, f"{float(row['seconds']):.0f}"])
    print(markdown(lines, headers))


def main() -> None:
    if sys.argv[1:2] == ["--show"]:
        show(FILE)
        return
    options = parser(__doc__)
    options.set_defaults(cache=Path("build/peers"))
    options.add_argument("--budgets", nargs="+", type=float, default=[0.5], help="shares of the MACs to keep")
    options.add_argument("--tools", nargs="+", default=list(TOOLS), choices=TOOLS)
    options.add_argument("--search-images", type=int, default=1000, help="calibration images for AIMET's search")
    options.add_argument("--options", default="", help="more options for `cnncompress decompose`, in one string")
    options.add_argument("--latency", action="store_true", help="measure what was kept, make nothing")
    args = options.parse_args()
    args.file = args.results / FILE.name
    bench = open_bench(args)
    if args.latency:
        time_all(bench, args)
        return
    torch.set_num_threads(1)
    torch.manual_seed(0)
    make(bench, args)


if __name__ == "__main__":
    main()
