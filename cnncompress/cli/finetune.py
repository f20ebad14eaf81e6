"""`cnncompress finetune`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from cnncompress.cli import options


@click.command("finetune")
@click.argument("run", type=options.PATH)
@options.data_option
@click.option(
    "--schedule",
    type=click.Choice(["all", "upper"]),
    help="What trains: all layers, or those above the topmost decomposed one [default: all].",
)
@click.option("--epochs", type=click.IntRange(1), help="Passes over the training images [default: 1].")
@click.option("--lr", type=float, help="Peak learning rate, decayed along a cosine [default: 0.01 sgd, 0.0003 adamw].")
@click.option("--optimizer", type=click.Choice(["sgd", "adamw"]), help="[default: sgd with momentum]")
@click.option("--weight-decay", type=float, help="Weight decay.")
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16", "fp16"]), help="[default: auto]")
@click.option("--resume", is_flag=True, help="Go on from the run's last checkpoint.")
@click.option("--seed", type=int, help="Seed of everything random [default: 0].")
@options.config_option
@click.option("--out", type=options.PATH, help="Write the tuned network to another run [default: RUN itself].")
@click.option("--force", is_flag=True, help="Replace an existing run at --out.")
@options.loader_options
@options.device_option
def command(run: Path, config: Path | None, **flags: Any) -> None:
    """Train the decomposed network of RUN; the best weights on the evaluation images are kept.

    Several processes: torchrun --nproc-per-node 2 -m cnncompress finetune RUN ...
    """
    from cnncompress.pipeline import run_finetune
    from cnncompress.report import render

    done = run_finetune(run, config, flags, ["cnncompress", *sys.argv[1:]])
    if done is not None:
        click.echo(render(done.report, "table"))
        click.echo(f"\n{done.summary}\nsaved in {done.out}")
