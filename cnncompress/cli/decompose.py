"""`cnncompress decompose`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from cnncompress.cli import options


@click.command("decompose")
@click.argument("model", required=False)
@options.model_options
@options.data_option
@click.option("--method", metavar="NAME[:k=v,...]", help="A decomposition, see `methods` [default: auto].")
@click.option("--rank", metavar="N|FRACTION", help="Rank of every layer, or share of its full rank [default: 0.25].")
@click.option("--metric", metavar="NAME", help="How errors are measured [default: frobenius].")
@click.option("--layers", multiple=True, metavar="PATTERN", help="Only layers whose name matches (shell glob).")
@click.option("--skip", multiple=True, metavar="PATTERN", help="No layer whose name matches.")
@options.config_option
@click.option("--out", type=options.PATH, help="Run directory to write [default: runs/MODEL].")
@click.option("--force", is_flag=True, default=None, help="Replace an existing run.")
@click.option("--dry-run", is_flag=True, default=None, help="Print the plan, write nothing.")
@options.loader_options
@options.device_option
def command(config: Path | None, **flags: Any) -> None:
    """Replace the layers of MODEL by chains of cheaper ones and write a run.

    MODEL is a torchvision name (vgg16), timm:NAME, the built-in digits_vgg, package.module:factory,
    path/to/file.py:factory, or a run directory.
    """
    from cnncompress.config import DecomposeSettings, merge
    from cnncompress.pipeline import run_decompose
    from cnncompress.report import render

    done = run_decompose(merge(DecomposeSettings, config, flags), ["cnncompress", *sys.argv[1:]])
    click.echo(render(done.report, "table", layers=True))
    click.echo(f"\nsaved in {done.out}" if done.out else "\ndry run: nothing was written")
    click.echo(str(done.phases), err=True)
