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
@click.option(
    "--metric",
    metavar="NAME",
    help="How errors are measured: frobenius, data-covariance, kronecker, mahalanobis [default: frobenius].",
)
@click.option(
    "--refine",
    type=int,
    metavar="N",
    help="0: a method's own procedure; 1: refit last stages; more: sweeps [default: 1].",
)
@click.option("--calibration-images", type=int, metavar="N", help="Images for the metric [default: 1000].")
@click.option(
    "--keep-statistics", is_flag=True, default=None, help="Keep the metric's statistics in the run, for reuse."
)
@click.option("--layers", multiple=True, metavar="PATTERN", help="Only layers whose name matches (shell glob).")
@click.option("--skip", multiple=True, metavar="PATTERN", help="No layer whose name matches.")
@options.config_option
@click.option("--out", type=options.PATH, metavar="DIR", help="Run directory to write [default: runs/MODEL].")
@click.option("--force", is_flag=True, default=None, help="Replace an existing run.")
@click.option("--dry-run", is_flag=True, default=None, help="Print the plan, write nothing.")
@options.loader_options
@options.device_option
def command(config: Path | None, **flags: Any) -> None:
    """Replace the layers of MODEL by cheaper chains; write a run.

    MODEL is a torchvision name (vgg16), timm:NAME, the built-in digits_vgg, package.module:factory,
    path/to/file.py:factory, or a run directory.
    """
    from cnncompress.config import DecomposeSettings, merge
    from cnncompress.pipeline import run_decompose
    from cnncompress.report import render

    done = run_decompose(merge(DecomposeSettings, config, flags), ["cnncompress", *sys.argv[1:]])
    if done.out is None:
        kept, done.report.kept = done.report.kept, {}
    click.echo(render(done.report, "table", layers=True))
    if done.out is None:
        click.echo()
        options.echo_table(kept.items(), ["kept layer", "because"], [None, 80])
    click.echo(f"\nsaved in {done.out}" if done.out else "\ndry run: nothing was written")
    click.echo(str(done.phases), err=True)
