"""`cnncompress inspect`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import click

from cnncompress.cli import frame, options

HEADERS = ("layer", "shape", "params", "MACs", "% MACs", "50/90/99 % energy", "methods")
COSTS = (2, 3)  # columns of large numbers


@frame.command(
    "inspect",
    "inspect resnet50",
)
@click.argument("model")
@options.model_options
def command(**flags: Any) -> None:
    """The layers of MODEL: cost, methods, energy by rank.

    MODEL is a network's name, see `decompose`, or a run. The energy of a rank is its share of the squared singular
    values, in the matrix that --method auto truncates.
    """
    from cnncompress.config import ModelSettings, merge

    settings = merge(ModelSettings, None, flags)
    frame.begin(settings)
    from cnncompress.api import run_inspect
    from cnncompress.reporting.layout import AS_NEEDED, fill, fitting, table, terminal_width
    from cnncompress.terminal.words import human

    opened, layers = run_inspect(settings)
    total = sum(layer.macs for layer in layers) or 1
    rows: list[list[str]] = []
    letters: dict[str, str] = {}
    for layer in layers:
        ranks = "/".join(str(r) for r in layer.rank_at.values()) + f" of {layer.full_rank}" if layer.rank_at else "–"
        share = f"{100 * layer.macs / total:.1f}"
        methods = layer.note or letters.setdefault(", ".join(layer.methods), chr(ord("A") + len(letters)))
        rows.append([layer.layer, layer.shape, f"{layer.params:,}", f"{layer.macs:,}", share, ranks, methods])
    options.echo(f"{opened.name}, {opened.weights}, input {'×'.join(map(str, opened.preprocessing.size))}")
    width = terminal_width()

    def draw(numbers: Callable[[str], str], *hidden: str, names: int | None = None) -> str:
        shown = [i for i, header in enumerate(HEADERS) if header not in hidden]
        cells = [[numbers(row[i]) if i in COSTS else row[i] for i in shown] for row in rows]
        align = "".join("llrrrrl"[i] for i in shown)
        widths = [names] + [None] * (len(shown) - 2) + [44]
        return table([HEADERS[i] for i in shown], cells, align, widths=widths, limit=width)

    short = partial(draw, lambda text: human(int(text.replace(",", ""))))
    narrow = [partial(short, "% MACs"), partial(short, "% MACs", "shape")]
    narrow.append(partial(narrow[-1], names=AS_NEEDED))
    options.echo(fitting([partial(draw, str), short, *narrow], width) + "\n")
    energy = "50/90/99 % energy: the rank that keeps this share of the squared singular values, of the full rank"
    for line in (energy, *(f"{letter}: {methods}" for methods, letter in letters.items())):
        options.echo(fill(line, width or 110))
