"""`cnncompress report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cnncompress.cli import frame, options
from cnncompress.errors import UsageError
from cnncompress.latency.setting import TimingSetting, in_runtimes

if TYPE_CHECKING:
    from cnncompress.config import ModelSettings
    from cnncompress.reporting.peers import Peer

MOST_THUMBNAILS = 48


@frame.command(
    "report",
    "report runs/resnet50",
    "report runs/* --latency --format markdown --output table.md",
    "report runs/resnet50 --format html --output resnet50.html",
)
@click.argument("runs", type=options.PATH, nargs=-1, required=True)
@options.data_option
@click.option("--latency", is_flag=True, help="Time the networks beside their originals.")
@click.option("--latency-batch", type=int, metavar="N", default=1, help="Images timed at once [default: 1].")
@options.timing_options
@click.option("--layers", is_flag=True, help="The table of layers too.")
@options.format_option
@click.option("--peers", type=options.PATH, metavar="FILE", help="CSV of others' name,macs,top1[,ms], for a page.")
@click.option("--thumbnails", type=int, metavar="N", help="Show up to N images whose answer changed, on a page.")
@click.option(
    "--output", type=options.PATH, metavar="FILE", help="File to write (replaced if there) instead of printing."
)
@options.loader_options
@options.device_option
@options.trust_option
def command(
    runs: tuple[Path, ...],
    latency: bool,
    latency_batch: int,
    runtime: tuple[str, ...],
    threads: int | None,
    memory_format: str | None,
    layers: bool,
    format_: str,
    peers: Path | None,
    thumbnails: int | None,
    output: Path | None,
    **flags: Any,
) -> None:
    """Cost and accuracy of RUNS beside their originals.

    Params, MACs, FLOPs, bytes and the accuracies that were measured; with --data they are measured again, with
    --latency the networks are timed. A sentence for each run comes first. --format html is a page with charts, layers,
    their spectra, the first layer's filters, curves of training and the commands that made the runs; it needs no other
    file and no server.
    """
    from cnncompress.config import ModelSettings, merge
    from cnncompress.config.early import check_text_output, write_text
    from cnncompress.reporting import render
    from cnncompress.reporting.peers import read_peers
    from cnncompress.reporting.stored import stored_reports

    settings = merge(ModelSettings, None, flags)
    if runtime and not latency:
        raise UsageError("--runtime is for timing; give --latency with it")
    _check_page_options(format_, peers, thumbnails, settings.data)
    others = [] if peers is None else read_peers(peers)
    if output is not None:
        check_text_output(output)
    stored = settings.data is None and not latency
    if stored and format_ != "html":
        frame.nothing_to_import()
        text = render(stored_reports(runs), format_, layers=layers, width=_width(output))
    else:
        for run in runs:
            frame.begin_run(run, settings.data)
        setting = TimingSetting("torch", "", settings.device, latency_batch, threads, memory_format or "")
        timings = in_runtimes(setting, runtime) if latency else ()
        if format_ == "html":
            text = _page(runs, settings, timings, thumbnails or 0, others)
        else:
            from cnncompress.api import run_report

            text = render(run_report(runs, settings, timings), format_, layers=layers, width=_width(output))
    if output is None:
        options.echo(text, coloured=format_ == "table")
    else:
        write_text(output, text.rstrip("\n") + "\n")
        frame.tell_written(output)


def _width(output: Path | None) -> int | None:
    """The columns that a table is printed in; None in a file."""
    from cnncompress.reporting.layout import terminal_width

    return terminal_width() if output is None else None


def _check_page_options(format_: str, peers: Path | None, thumbnails: int | None, data: str | None) -> None:
    """UsageError for what only a page shows without one, and for images that are not given."""
    for name, value in (("peers", peers), ("thumbnails", thumbnails)):
        if value is not None and format_ != "html":
            raise UsageError(f"--{name} is for pages; give --format html with it")
    if thumbnails is not None and not 1 <= thumbnails <= MOST_THUMBNAILS:
        raise UsageError(f"--thumbnails: {thumbnails} should be from 1 to {MOST_THUMBNAILS}")
    if thumbnails is not None and data is None:
        raise UsageError("--thumbnails shows images; give --data with it")


def _page(
    runs: Sequence[Path],
    settings: ModelSettings,
    timings: Sequence[TimingSetting],
    thumbnails: int,
    peers: Sequence[Peer],
) -> str:
    """The page of a report, with pictures of the weights of its runs."""
    from cnncompress.api import run_page
    from cnncompress.reporting.evidence import evidence_of
    from cnncompress.reporting.report_page import report_page

    report, pictures = run_page(runs, settings, timings, thumbnails)
    return report_page(report, evidence_of(runs), pictures, peers)
