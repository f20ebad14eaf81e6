"""How fast root modules run: ResNet-50 of Deep Roots (Ioannou et al. 2017) and its root-8 to root-64, in every runtime.

    python scripts/bench_roots.py [--roots 8 16 32 64] [--batches 1 16] [--threads 1] [--seconds 10]
    python scripts/bench_roots.py --show

The networks have random weights, which no time depends on. All of a runtime, a batch and a memory format are timed in
turns in one process. The paper has 621 ms an image for the original on a CPU, 519 for root-8 and 426 for root-64. Rows
go to `results/roots.csv`; what is there is not timed again.
"""

from __future__ import annotations

import argparse
import dataclasses

import torch
from benchlib import Table, markdown, table_parser
from torch import nn

import cnncompress as cc
from cnncompress.fitting import initialise
from cnncompress.latency.clock import Rounds
from cnncompress.latency.network import latency
from cnncompress.latency.setting import TimingSetting
from cnncompress.network.memory_format import MEMORY_FORMATS, to_memory_format
from cnncompress.network.provenance import Provenance

RUNTIMES = ("torch", "onnxruntime", "openvino")
KEYS = ("network", "runtime", "format", "batch", "threads", "size")
COLUMNS = (*KEYS, "macs", "params", "ms", "p10", "p90", "share")
ORIGINAL = "original"


def networks(roots: list[int], example: torch.Tensor) -> dict[str, nn.Module]:
    """The original and its root networks, the 3×3 layers in groups and the network's own 1×1 after each."""
    original = cc.load_model("resnet50_v1", "none").model.eval()
    found: dict[str, nn.Module] = {ORIGINAL: original}
    for groups in roots:
        method = f"root:groups={groups},join=network,order=given"
        plan = cc.plan(original, example, method=method, layers=["*.spatial"])
        found[f"root-{groups}"] = initialise(original, Provenance(), plan).network.eval()
    return found


def measure(table: Table, args: argparse.Namespace) -> None:
    """The rows that are missing."""
    example = torch.randn(1, 3, args.size, args.size, generator=torch.Generator().manual_seed(0))
    built = networks(args.roots, example)
    costs = {name: cc.profile(network, example) for name, network in built.items()}
    for runtime in args.runtimes:
        for layout in MEMORY_FORMATS if runtime == "torch" else ("",):
            ready = {n: to_memory_format(m, layout) if layout else m for n, m in built.items()}
            for batch in args.batches:
                place = {
                    "runtime": runtime,
                    "format": layout,
                    "batch": batch,
                    "threads": args.threads,
                    "size": args.size,
                }
                if all(table.find(network=name, **place) for name in ready):
                    continue
                setting = TimingSetting(runtime=runtime, batch=batch, threads=args.threads)
                times = latency(ready, example, setting, dataclasses.replace(Rounds(), seconds=args.seconds))
                whole = times[ORIGINAL].median
                for name, found in times.items():
                    table.add(
                        network=name, **place, macs=costs[name].macs, params=costs[name].params, ms=found.median,
                        p10=found.p10, p90=found.p90, share=found.median / whole,
                    )  # fmt: skip


def show(table: Table) -> None:
    """The rows as a Markdown table: milliseconds of the original, and the share of them of the others."""
    places = list(dict.fromkeys(tuple(row[k] for k in KEYS[1:]) for row in table.rows))
    names = list(dict.fromkeys(row["network"] for row in table.rows))
    lines = []
    for place in places:
        by = {r["network"]: r for r in table.rows if tuple(r[k] for k in KEYS[1:]) == place}
        cells = [" ".join(filter(None, place[:2])), place[2], place[3]]
        cells += [
            f"{float(by[n]['ms']):.1f} ms" if n == ORIGINAL else f"{float(by[n]['share']):.2f}"
            for n in names
            if n in by
        ]
        lines.append(cells)
    print(markdown(lines, ["runtime", "batch", "threads", *names]))


def main() -> None:
    options = table_parser(__doc__)
    options.add_argument("--roots", type=int, nargs="+", default=[8, 16, 32, 64])
    options.add_argument("--runtimes", nargs="+", default=list(RUNTIMES))
    options.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--size", type=int, default=224)
    options.add_argument("--seconds", type=float, default=10.0, help="for each network, runtime and batch")
    args = options.parse_args()
    table = Table(args.results / "roots.csv", KEYS, COLUMNS)
    if not args.show:
        measure(table, args)
    show(table)


if __name__ == "__main__":
    main()
