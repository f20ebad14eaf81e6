"""`cnncompress inspect`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cnncompress.cli import completion, frame, options
from cnncompress.errors import UsageError
from cnncompress.latency.setting import TimingSetting

if TYPE_CHECKING:
    from cnncompress.pipeline.opened import Opened
    from cnncompress.reporting.inspection import Inspected

HEADERS = ("layer", "shape", "params", "MACs", "% MACs", "ms", "50/90/99 % energy", "methods")
COSTS = (2, 3)  # columns of large numbers


@frame.command(
    "inspect",
    "inspect resnet50",
    "inspect resnet50 --latency --format html --output layers.html",
    "inspect runs/resnet50 --plot plan.svg",
)
@click.argument("model", shell_complete=completion.MODEL)
@options.model_options
@click.option("--format", "format_", type=click.Choice(["table", "html"]), help="How to print [default: table].")
@click.option("--output", type=options.PATH, metavar="FILE", help="File to write the page to.")
@click.option(
    "--plot",
    type=options.PATH,
    metavar="FILE",
    help="Write a picture too (SVG): bars; of a run, what its plan changed.",
)
@click.option("--latency", is_flag=True, help="The time of each layer too, in PyTorch.")
@click.option("--threads", type=int, metavar="N", help="CPU threads while timing [default: torch's].")
def command(
    format_: str | None, output: Path | None, plot: Path | None, latency: bool, threads: int | None, **flags: Any
) -> None:
    """The layers of MODEL: cost, methods, energy by rank.

    MODEL is a network's name, see `decompose`, or a run. The energy of a rank is its share of the squared singular
    values, in the matrix that --method auto truncates.
    """
    from cnncompress.config import ModelSettings, merge
    from cnncompress.config.early import check_text_output, write_text

    if output is not None and format_ != "html":
        raise UsageError("--output is for pages; give --format html with it")
    settings = merge(ModelSettings, None, flags)
    frame.begin(settings)
    for file in filter(None, (output, plot)):
        check_text_output(file)
    from cnncompress.api import run_inspect
    from cnncompress.reporting.inspection import inspection_page

    opened, layers = run_inspect(settings, TimingSetting(threads=threads) if latency else None)
    title = f"{opened.name}, {opened.weights}, input {'×'.join(map(str, opened.preprocessing.size))}"
    if plot is not None:
        write_text(plot, _picture(title, opened, layers))
        frame.tell_written(plot)
    if format_ != "html":
        _print(title, layers)
    elif output is None:
        options.echo(inspection_page(opened.name, title, layers), coloured=False)
    else:
        write_text(output, inspection_page(opened.name, title, layers))
        frame.tell_written(output)


def _picture(title: str, opened: Opened, layers: Sequence[Inspected]) -> str:
    """The layers, or what the plan of a run made of them."""
    from cnncompress.reporting.layer_picture import layer_picture, of_network, of_plan
    from cnncompress.reporting.rows import layer_rows

    plan = opened.provenance.plan
    return layer_picture(title, of_plan(layer_rows(plan, {})) if plan.changes else of_network(layers))


def _print(title: str, layers: Sequence[Inspected]) -> None:
    """The layers as a table that fits the terminal."""
    from cnncompress.reporting.cells import NONE
    from cnncompress.reporting.inspection import ENERGY, letters_of, told_of
    from cnncompress.reporting.layout import AS_NEEDED, fill, fitting, table, terminal_width
    from cnncompress.terminal.words import human

    total = sum(layer.macs for layer in layers) or 1
    rows: list[list[str]] = []
    letters = letters_of(layers)
    for layer in layers:
        share = f"{100 * layer.macs / total:.1f}"
        methods = layer.note or letters[", ".join(layer.methods)]
        ms = NONE if layer.ms is None else f"{layer.ms:.3f}"
        costs = [f"{layer.params:,}", f"{layer.macs:,}", share, ms]
        rows.append([layer.layer, layer.shape, *costs, layer.ranks, methods])
    untimed = ["ms"] * all(layer.ms is None for layer in layers)
    options.echo(title)
    width = terminal_width()

    def draw(numbers: Callable[[str], str], *hidden: str, names: int | None = None) -> str:
        shown = [i for i, header in enumerate(HEADERS) if header not in (*hidden, *untimed)]
        cells = [[numbers(row[i]) if i in COSTS else row[i] for i in shown] for row in rows]
        align = "".join("llrrrrrl"[i] for i in shown)
        widths = [names] + [None] * (len(shown) - 2) + [44]
        return table([HEADERS[i] for i in shown], cells, align, widths=widths, limit=width)

    short = partial(draw, lambda text: human(int(text.replace(",", ""))))
    narrow = [partial(short, "% MACs"), partial(short, "% MACs", "shape")]
    narrow.append(partial(narrow[-1], names=AS_NEEDED))
    options.echo(fitting([partial(draw, str), short, *narrow], width) + "\n")
    for line in (ENERGY, *told_of(layers)):
        options.echo(fill(line, width or 110))
