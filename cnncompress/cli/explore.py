"""`cnncompress explore`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cnncompress.cli import completion, frame, options, planning
from cnncompress.terminal import console
from cnncompress.terminal.events import event

OWN = {"budgets", "measure", "format_", "output", "plot", "out", "force", *frame.VOICES}  # no options of `decompose`


@frame.command(
    "explore",
    "explore resnet50 --data imagenet/",
    "explore resnet50 --data imagenet/ --budgets macs=0.3:0.8:11 --measure 6",
    "explore resnet50 --data imagenet/ --budgets latency --runtime onnxruntime --format html --output curve.html",
)
@click.argument("model", required=False, shell_complete=completion.MODEL)
@options.model_options
@options.data_option
@click.option(
    "--budgets",
    multiple=True,
    metavar="WHAT[=SHARES]",
    help="Budgets to plan within: macs, params or latency, with shares as 0.3,0.5 or as 0.3:0.8:6 (from, to, number) "
    "[default: macs, 12 of them from 0.2 to 0.9].",
)
@click.option(
    "--measure", type=int, metavar="N", help="Networks of each cost to make, correct and measure [default: 4]."
)
@planning.planning_options
@options.config_option
@click.option(
    "--out", type=options.PATH, metavar="DIR", help="Folder of what is found and goes on [default: explorations/MODEL]."
)
@click.option("--force", is_flag=True, default=None, help="Replace what was found in this folder before.")
@click.option(
    "--format", "format_", type=click.Choice(["table", "csv", "json", "html"]), help="How to print [default: table]."
)
@click.option("--output", type=options.PATH, metavar="FILE", help="File to write in this format; the table is printed.")
@click.option("--plot", type=options.PATH, metavar="FILE", help="Write a picture of the curve too (SVG).")
@options.loader_options
@planning.timing_options
@options.device_option
@click.pass_context
def command(
    context: click.Context,
    config: Path | None,
    format_: str | None,
    output: Path | None,
    plot: Path | None,
    **flags: Any,
) -> None:
    """Plan MODEL within many budgets, measure a few.

    One calibration on --data and one set of candidates serve all budgets. Every plan has its predicted rise of the
    loss; some networks are made, corrected and measured: the knee of the curve, and those that tell which is the
    cheapest within 0.5, 1 and 2 points of top-1. The commands that make these networks are printed, and take the
    statistics from here.

    An exploration that was interrupted goes on with the same command, and one with other budgets keeps what it has.
    With --runtime, networks that are measured are timed.
    """
    from cnncompress.config import ExploreSettings, merge
    from cnncompress.config.early import check_methods, check_text_output, write_text

    settings = merge(ExploreSettings, config, flags)
    frame.need_data(settings.data, "explore")
    check_methods(settings.method)
    frame.begin(settings)
    for file in filter(None, (output, plot)):
        check_text_output(file)
    from cnncompress.api import run_explore
    from cnncompress.reporting.exploration import render_exploration
    from cnncompress.reporting.exploration_page import exploration_picture
    from cnncompress.reporting.layout import terminal_width

    elsewhere = [] if settings.out is None else ["--statistics", str(settings.out)]
    done = run_explore(settings, ["cnncompress", "decompose", *frame.given(context, OWN), *elsewhere])
    format_ = format_ or "table"
    text = render_exploration(done.exploration, "table" if output else format_, terminal_width())
    options.echo(text, coloured=output is not None or format_ == "table")
    if output is not None:
        write_text(output, render_exploration(done.exploration, format_) + "\n")
        frame.tell_written(output)
    if plot is not None:
        write_text(plot, exploration_picture(done.exploration))
        frame.tell_written(plot)
    console.LOG.info("kept in %s", done.out, extra=event("written", path=str(done.out)))
    frame.tell_times(done.phases)
