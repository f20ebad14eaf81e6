"""`cnncompress profile`."""

from __future__ import annotations

from typing import Any

import click

from cnncompress.cli import options


@click.command("profile")
@click.argument("model")
@options.model_options
@click.option("--batch-size", type=click.IntRange(1), default=1, show_default=True, help="Images in a batch.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads [default: torch's].")
@click.option("--memory-format", type=click.Choice(["contiguous", "channels_last"]), default="contiguous")
@options.device_option
def command(batch_size: int, threads: int | None, memory_format: str, device: str | None, **flags: Any) -> None:
    """Params, MACs, size and latency of MODEL; a run is timed side by side with its original."""
    from tabulate import tabulate

    from cnncompress.config import ModelSettings, merge
    from cnncompress.pipeline import run_profile
    from cnncompress.pipeline.measure import Timing

    settings = merge(ModelSettings, None, flags)
    opened, cost, times = run_profile(settings, Timing(batch_size, threads, device or "auto", memory_format))
    rows = [
        ["params", f"{cost.params:,}"],
        ["MACs", f"{cost.total_macs:,}"],
        ["FLOPs (2 × MACs)", f"{2 * cost.total_macs:,}"],
        ["of them outside conv and linear layers", f"{cost.other_macs:,} MACs"],
        ["size", f"{cost.size_bytes:,} bytes"],
    ]
    rows += [[f"latency, {n}", f"{t.median:.2f} ms (p10 {t.p10:.2f}, p90 {t.p90:.2f})"] for n, t in times.items()]
    if len(times) == 2:
        first, second = times.values()
        rows.append(["latency, share of the original", f"{second.median / first.median:.2f}"])
    one = next(iter(times.values()))
    click.echo(tabulate(rows, headers=[opened.name, ""], tablefmt="simple", disable_numparse=True))
    click.echo(
        f"one image of {'×'.join(map(str, cost.input_shape[1:]))}; latency: batch {one.batch}, "
        f"{one.threads} threads, {one.device}, {one.dtype}, {one.memory_format}"
    )
