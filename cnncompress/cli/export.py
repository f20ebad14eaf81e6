"""`cnncompress export`."""

from __future__ import annotations

from pathlib import Path

import click

from cnncompress.cli import frame, options


@frame.command(
    "export",
    "export runs/resnet50 --format onnx",
)
@click.argument("run", type=options.PATH)
@click.option("--format", "format_", type=click.Choice(["onnx", "pt2"]), required=True, help="ONNX, or torch.export's.")
@click.option("--output", type=options.PATH, metavar="FILE", help="File to write [default: RUN.onnx or RUN.pt2].")
@click.option("--opset", type=click.IntRange(min=1), metavar="N", help="ONNX operator set [default: the exporter's].")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@options.trust_option
def command(
    run: Path, format_: str, output: Path | None, opset: int | None, force: bool, trust_code: bool | None
) -> None:
    """Write the network of RUN as one checked file.

    The file is run, in ONNX Runtime or PyTorch, and its outputs compared with the network's, before it is in its place.
    """
    frame.begin_run(run)
    from cnncompress.api import run_export

    done = run_export(run, format_, output, force, bool(trust_code), opset)
    options.echo(
        f"{done.path}: {done.bytes:,} bytes, outputs differ by at most {done.max_abs_difference:.2g} "
        f"(allowed {done.tolerance:.2g})"
    )
