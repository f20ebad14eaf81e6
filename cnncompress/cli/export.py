"""`cnncompress export`."""

from __future__ import annotations

from pathlib import Path

import click

from cnncompress.cli import options


@click.command("export")
@click.argument("run", type=options.PATH)
@click.option("--format", "format_", type=click.Choice(["onnx", "pt2"]), required=True)
@click.option("--output", type=options.PATH, help="File to write [default: RUN.onnx or RUN.pt2].")
@click.option("--force", is_flag=True, help="Replace an existing file.")
def command(run: Path, format_: str, output: Path | None, force: bool) -> None:
    """Write the network of RUN as one file, after its outputs were compared with the network's."""
    from cnncompress.pipeline import run_export

    done = run_export(run, format_, output, force)
    click.echo(
        f"{done.path}: {done.bytes:,} bytes, outputs differ by at most {done.max_abs_difference:.2g} "
        f"(allowed {done.tolerance:.2g})"
    )
