"""The rise of the loss that the kronecker metric predicts, layer by layer, against the measured one.

    python scripts/bench_kronecker.py MODEL --weights FILE --data FOLDER [--input-size 32] [--images 1000]

One chain at a time is put into the network. Half the metric's squared error predicts the Kullback-Leibler divergence of
its outputs from the original's, in nats an image; the divergence is measured on images that gave no statistics.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
from benchlib import Bench, Table, markdown, open_bench, parser

import cnncompress as cc
from cnncompress.network.provenance import provenance

FRACTIONS = (0.25, 0.5)
KEYS = ("network", "method", "fraction", "layer")
COLUMNS = (*KEYS, "rank", "predicted", "measured", "ratio", "images")


def compare(bench: Bench, table: Table, method: str, cache: Path) -> None:
    layers = bench.inner_layers()
    statistics = bench.statistics(layers, cache)
    for fraction in FRACTIONS:
        every = cc.plan(
            bench.model, bench.example, method=method, rank=fraction, metric="kronecker", layers=layers, force=True
        )
        for layer, layer_plan in every.layers.items():
            point = {"network": bench.name, "method": method, "fraction": fraction, "layer": layer}
            if table.find(**point):
                continue
            alone = cc.Plan({layer: layer_plan}, metric="kronecker")
            small = cc.decompose(bench.model, alone, statistics=statistics, progress=False)
            measured = bench.measure(small)["divergence"]
            predicted = provenance(small).rises[layer]  # type: ignore[union-attr]
            rank = "x".join(map(str, layer_plan.rank))
            found = {"predicted": predicted, "measured": measured, "ratio": measured / predicted}
            table.add(**point, rank=rank, **found, images=bench.images)


def draw(rows: list[dict[str, str]], name: str, path: Path) -> None:
    figure, panel = plt.subplots(figsize=(5, 4.5))
    for fraction, colour in zip(FRACTIONS, ("tab:red", "tab:blue"), strict=True):
        points = [r for r in rows if float(r["fraction"]) == fraction]
        x, y = ([float(r[key]) for r in points] for key in ("predicted", "measured"))
        panel.loglog(x, y, "o", color=colour, markersize=5, label=f"rank {fraction:g} of full")
    ends = [min(panel.get_xlim()[0], panel.get_ylim()[0]), max(panel.get_xlim()[1], panel.get_ylim()[1])]
    panel.plot(ends, ends, color="black", linewidth=1, label="as predicted")
    panel.plot(ends, [8 * e for e in ends], color="black", linewidth=1, linestyle=":", label="8 times that")
    panel.set(xlim=ends, ylim=ends, title=f"{name}: one {rows[0]['method']} chain at a time")
    panel.set(xlabel="predicted rise of the loss (nats an image)", ylabel="measured divergence (nats an image)")
    panel.legend(fontsize=8)
    panel.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--method", default="spatial-svd")
    args = options.parse_args()
    bench = open_bench(args)
    table = Table(args.results / f"kronecker_{bench.name}.csv", KEYS, COLUMNS)
    compare(bench, table, args.method, args.cache)
    rows = [r for r in table.rows if r["method"] == args.method]
    draw(rows, bench.name, table.path.with_suffix(".png"))
    values = {(r["layer"], float(r["fraction"])): r for r in rows}
    lines = []
    for layer in dict.fromkeys(r["layer"] for r in rows):
        pairs = [values[layer, f] for f in FRACTIONS]
        lines.append([layer, *(f"{float(r[key]):.2g}" for r in pairs for key in ("predicted", "measured", "ratio"))])
    headers = [f"{what} at {f:g}" for f in FRACTIONS for what in ("predicted", "measured", "ratio")]
    print(markdown(lines, ["layer", *headers]))


if __name__ == "__main__":
    main()
