"""`cnncompress export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cnncompress.cli import frame, options
from cnncompress.errors import UsageError

if TYPE_CHECKING:
    from cnncompress.api import Int8Measured


@frame.command(
    "export",
    "export runs/resnet50 --format onnx",
    "export runs/resnet50 --format openvino --int8 --data imagenet/",
)
@click.argument("run", type=options.PATH)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["onnx", "openvino", "pt2"]),
    required=True,
    help="ONNX, OpenVINO's pair of files (.xml and .bin), or torch.export's.",
)
@click.option("--int8", is_flag=True, help="In 8-bit integers, static, with scales from images of --data.")
@options.data_option
@click.option(
    "--keep-float", multiple=True, metavar="PATTERN", help="With --int8: no layer whose name matches (shell glob)."
)
@click.option(
    "--weight-bits",
    type=click.Choice(["7", "8"]),
    help="With --int8: bits of weights [default: 8, or 7 on x86 processors without VNNI].",
)
@click.option(
    "--calibration-images",
    type=click.IntRange(min=1),
    metavar="N",
    help="With --int8: images for scales [default: 256].",
)
@click.option(
    "--output", type=options.PATH, metavar="FILE", help="File to write [default: RUN.onnx, RUN.xml, RUN.pt2]."
)
@click.option("--opset", type=click.IntRange(min=1), metavar="N", help="ONNX operator set [default: the exporter's].")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@options.loader_options
@options.trust_option
def command(
    run: Path,
    format_: str,
    int8: bool,
    output: Path | None,
    opset: int | None,
    force: bool,
    trust_code: bool | None,
    keep_float: tuple[str, ...],
    weight_bits: str | None,
    calibration_images: int | None,
    **images: Any,
) -> None:
    """Write the network of RUN as one checked file.

    The file is run, in ONNX Runtime, OpenVINO or PyTorch, and its outputs compared with the network's, before it is in
    its place. With --int8, accuracy and time of both precisions are measured first, on images that gave no scales.
    """
    from cnncompress.config import ModelSettings, merge

    own = {"keep_float": keep_float or None, "weight_bits": weight_bits, "calibration_images": calibration_images}
    for name, value in (images | own).items():
        if value is not None and not int8:
            raise UsageError(f"--{name.replace('_', '-')} is for --int8; give that too")
    settings = merge(ModelSettings, None, images | {"trust_code": trust_code})
    frame.begin_run(run, settings.data)
    if int8:
        from cnncompress.api import Int8Asked, run_int8_export

        count = calibration_images or Int8Asked.calibration_images
        bits = None if weight_bits is None else int(weight_bits)
        asked = Int8Asked(format_, output, force, count, keep_float, opset, bits)
        done = run_int8_export(run, settings, asked, tell)
    else:
        from cnncompress.api import run_export

        done = run_export(run, format_, output, force, settings.trust_code, opset)
    options.echo(
        f"{done.path}: {done.bytes:,} bytes, outputs differ by at most {done.max_abs_difference:.2g} "
        f"(allowed {done.tolerance:.2g})"
    )
    frame.tell_written(done.path, shown=False)


def tell(measured: Int8Measured) -> None:
    """Accuracy, time and size of both precisions, after the sentence that they come to."""
    from cnncompress.reporting.int8 import int8_sentence, int8_table
    from cnncompress.reporting.layout import fill, terminal_width

    options.echo(fill(int8_sentence(measured), terminal_width()))
    options.echo()
    headers, rows, align = int8_table(measured)
    options.echo_table(rows, headers, [None] * len(headers), align)
    options.echo()
