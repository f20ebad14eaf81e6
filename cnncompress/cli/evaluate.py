"""`cnncompress evaluate`."""

from __future__ import annotations

from typing import Any

import click

from cnncompress.cli import completion, frame, options


@frame.command(
    "evaluate",
    "evaluate runs/resnet50 --data imagenet/",
)
@click.argument("model", shell_complete=completion.MODEL)
@options.model_options
@options.data_option
@options.loader_options
@options.device_option
def command(**flags: Any) -> None:
    """Top-1, top-5 and loss of MODEL on --data.

    MODEL is a network's name, see `decompose`, or a run; the images are the evaluation part of --data.
    """
    from cnncompress.config import ModelSettings, merge

    settings = merge(ModelSettings, None, flags)
    frame.need_data(settings.data, "evaluate")
    frame.begin(settings)
    from cnncompress.api import run_evaluate

    name, result = run_evaluate(settings)
    scores = f"top-1 {result.top1:.2f} %, top-5 {result.top5:.2f} %, loss {result.loss:.4f}"
    options.echo(f"{name}: {scores} on {result.images} images")
