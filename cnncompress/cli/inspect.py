"""`cnncompress inspect`."""

from __future__ import annotations

from typing import Any

import click

from cnncompress.cli import frame, options


@frame.command(
    "inspect",
    "inspect resnet50",
)
@click.argument("model")
@options.model_options
def command(**flags: Any) -> None:
    """The layers of MODEL: cost, methods, energy by rank.

    MODEL is a network's name, see `decompose`, or a run. The energy of a rank is its share of the squared singular
    values, in the matrix that --method auto truncates.
    """
    from cnncompress.config import ModelSettings, merge

    settings = merge(ModelSettings, None, flags)
    frame.begin(settings.model)
    from cnncompress.pipeline import run_inspect
    from cnncompress.reporting.layout import fill, terminal_width

    opened, layers = run_inspect(settings)
    total = sum(layer.macs for layer in layers) or 1
    rows: list[list[str]] = []
    letters: dict[str, str] = {}
    for layer in layers:
        ranks = "/".join(str(r) for r in layer.rank_at.values()) + f" of {layer.full_rank}" if layer.rank_at else "–"
        share = f"{100 * layer.macs / total:.1f}"
        methods = layer.note or letters.setdefault(", ".join(layer.methods), chr(ord("A") + len(letters)))
        rows.append([layer.layer, layer.shape, f"{layer.params:,}", f"{layer.macs:,}", share, ranks, methods])
    headers = ["layer", "shape", "params", "MACs", "% MACs", "50/90/99 % energy", "methods"]
    options.echo(f"{opened.name}, {opened.weights}, input {'×'.join(map(str, opened.preprocessing.size))}")
    options.echo_table(rows, headers, [None] * 6 + [44], "llrrrrl")
    width = terminal_width() or 110
    energy = "50/90/99 % energy: the rank that keeps this share of the squared singular values, of the full rank"
    options.echo(f"\n{fill(energy, width)}")
    for methods, letter in letters.items():
        options.echo(fill(f"{letter}: {methods}", width))
