"""`cnncompress inspect`."""

from __future__ import annotations

from typing import Any

import click

from cnncompress.cli import options


@click.command("inspect")
@click.argument("model")
@options.model_options
def command(**flags: Any) -> None:
    """The layers of MODEL: shape, params, MACs, share, methods that apply, energy per rank."""
    from tabulate import tabulate

    from cnncompress.config import ModelSettings, merge
    from cnncompress.pipeline import run_inspect

    opened, layers = run_inspect(merge(ModelSettings, None, flags))
    total = sum(layer.macs for layer in layers) or 1
    rows = []
    for layer in layers:
        ranks = "/".join(str(r) for r in layer.rank_at.values()) + f" of {layer.full_rank}" if layer.rank_at else "–"
        share = f"{100 * layer.macs / total:.1f}"
        methods = layer.note or ", ".join(layer.methods)
        rows.append([layer.layer, layer.shape, f"{layer.params:,}", f"{layer.macs:,}", share, ranks, methods])
    headers = ["layer", "shape", "params", "MACs", "% MACs", "rank for 50/90/99 % energy", "methods, or why kept"]
    align = ["left", "left", "right", "right", "right", "right", "left"]
    click.echo(f"{opened.name}, {opened.weights}, input {'×'.join(map(str, opened.preprocessing.size))}")
    click.echo(tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True, colalign=align))
