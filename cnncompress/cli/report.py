"""`cnncompress report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cnncompress.cli import options


@click.command("report")
@click.argument("runs", type=options.PATH, nargs=-1, required=True)
@options.data_option
@click.option("--latency", is_flag=True, help="Time the networks beside their originals.")
@click.option("--latency-batch", type=click.IntRange(1), default=1, show_default=True, help="Images timed at once.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads while timing [default: torch's].")
@click.option("--layers", is_flag=True, help="The table of layers too.")
@options.format_option
@click.option("--output", type=options.PATH, help="File to write instead of printing.")
@options.loader_options
@options.device_option
def command(
    runs: tuple[Path, ...],
    latency: bool,
    latency_batch: int,
    threads: int | None,
    layers: bool,
    format_: str,
    output: Path | None,
    **flags: Any,
) -> None:
    """Params, MACs, FLOPs, size and accuracy of one or more RUNS beside their originals."""
    from cnncompress.config import ModelSettings, merge
    from cnncompress.pipeline import run_report
    from cnncompress.pipeline.measure import Timing
    from cnncompress.publish import replacing
    from cnncompress.report import render

    settings = merge(ModelSettings, None, flags)
    timing = Timing(latency_batch, threads, settings.device) if latency else None
    text = render(run_report(runs, settings, timing), format_, layers=layers)
    if output is None:
        click.echo(text)
    else:
        with replacing(output, force=True) as file:
            file.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
        click.echo(f"written to {output}", err=True)
