"""`cnncompress decompose`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from cnncompress.cli import completion, frame, options, planning
from cnncompress.names import metrics


@frame.command(
    "decompose",
    "decompose resnet50 --data imagenet/",
    "decompose resnet50 --budget latency=0.7 --data imagenet/ --out runs/fast",
    "decompose vgg16 --rank 0.25 --dry-run",
)
@click.argument("model", required=False, shell_complete=completion.MODEL)
@options.model_options
@options.data_option
@click.option(
    "--rank",
    metavar="N|FRACTION",
    help="Rank of every layer, or share of its full rank. --data is then used to measure only, unless --correct "
    "is given [default: 0.25 without --data].",
)
@click.option(
    "--budget",
    multiple=True,
    metavar="WHAT=SHARE",
    help="Share of the original to keep: macs=0.5, params=0.3, latency=0.6 (measured). Several hold together "
    "[default with --data: macs=0.5, or the nearest share that can be reached].",
)
@click.option("--max-drop", type=float, metavar="POINTS", help="Fewest MACs at which top-1 drops by at most POINTS.")
@click.option("--plan", type=options.PATH, metavar="FILE", help="Use this plan: the plan.json of a run, edited or not.")
@planning.planning_options
@click.option(
    "--init",
    type=click.Choice(["fit", "scratch"]),
    help="fit: kernels that stand for the layer; scratch: random ones, to be trained by finetune [default: fit].",
)
@click.option("--keep-statistics", is_flag=True, default=None, help="Save the statistics in the run, for reuse.")
@options.config_option
@click.option("--out", type=options.PATH, metavar="DIR", help="Run directory to write [default: runs/MODEL].")
@click.option("--force", is_flag=True, default=None, help="Replace an existing run; other files in its folder stay.")
@click.option("--dry-run", is_flag=True, default=None, help="Print the plan, write nothing.")
@options.loader_options
@click.option(
    "--allow-slower",
    is_flag=True,
    default=None,
    help="Let a budget of macs or params, or --max-drop, make the network slower [default: its time is measured and "
    "limits the plan].",
)
@planning.timing_options
@options.device_option
def command(config: Path | None, **flags: Any) -> None:
    """Replace the layers of MODEL by cheaper chains; write a run.

    MODEL is a torchvision name (vgg16), timm:NAME, a built-in one (photodigits_vgg), package.module:factory,
    path/to/file.py:factory, or a run directory.

    With --data (fifty or more images, with or without labels), methods and ranks are planned for half the MACs, and
    outputs are corrected. A rank, a budget or a plan replaces this default. Without --data, every layer gets a quarter
    of its full rank.
    """
    from cnncompress.config import DecomposeSettings, merge
    from cnncompress.config.early import check_methods, check_place

    settings = merge(DecomposeSettings, config, flags).resolved()
    check_methods(settings.method)
    metrics.entry(settings.metric)
    frame.begin(settings)
    check_place(settings)
    from cnncompress.api import run_decompose
    from cnncompress.reporting import render
    from cnncompress.reporting.layout import fill, terminal_width

    done = run_decompose(settings, ["cnncompress", *sys.argv[1:]])
    kept: dict[str, str] = {}
    if done.out is None:
        kept, done.report.kept = done.report.kept, {}
    options.echo(render(done.report, "table", layers=True, width=terminal_width()))
    if kept:
        options.echo()
        options.echo_table(kept.items(), ["kept layer", "because"], [None, 80])
    options.echo(f"\nsaved in {done.out}" if done.out else "\ndry run: nothing was written")
    if done.hint:
        options.echo(fill(done.hint, terminal_width()))
    if done.out is not None:
        frame.tell_written(done.out, shown=False)
    frame.tell_times(done.phases)
