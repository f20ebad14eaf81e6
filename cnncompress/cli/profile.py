"""`cnncompress profile`."""

from __future__ import annotations

from typing import Any

import click

from cnncompress.cli import options


@click.command("profile")
@click.argument("model")
@options.model_options
@click.option("--batch-size", type=int, metavar="N", default=1, help="Images timed at once [default: 1].")
@options.timing_options
@options.device_option
def command(batch_size: int, threads: int | None, memory_format: str, device: str | None, **flags: Any) -> None:
    """Params, MACs, size and latency of MODEL.

    MODEL is a network's name, see `decompose`, or a run, which is timed in turns with its original.
    """
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
        ["size", f"{cost.size_bytes:,} bytes"],
    ]
    if cost.other_macs:
        rows.append(["MACs outside convolution and linear layers", f"{cost.other_macs:,}"])
    rows += [[f"latency, {n}", f"{t.median:.2f} ms (p10 {t.p10:.2f}, p90 {t.p90:.2f})"] for n, t in times.items()]
    if len(times) == 2:
        first, second = times.values()
        rows.append(["latency, share of the original", f"{second.median / first.median:.2f}"])
    one = next(iter(times.values()))
    click.echo(f"{opened.name}, {opened.weights}, one image of {'×'.join(map(str, cost.input_shape[1:]))}")
    click.echo(tabulate(rows, tablefmt="plain", disable_numparse=True))
    threads_used = f"{one.threads} thread{'s' * (one.threads != 1)}"
    click.echo(f"latency: batch {one.batch}, {threads_used}, {one.device}, {one.dtype}, {one.memory_format}")
