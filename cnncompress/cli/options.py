"""Options that several commands share. None means: not given, so that a config file or a default decides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from cnncompress.cli import completion
from cnncompress.files.home import at_home
from cnncompress.latency.runtimes import REGISTRY
from cnncompress.latency.setting import parse_runtime
from cnncompress.terminal.colours import has_colours, write_coloured
from cnncompress.text import plain_lines

F = Callable[..., Any]


class _Path(click.Path):
    """A path; `~` stands for the user's home folder in `--out=~/runs` too, where shells leave it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(at_home(value), param, ctx)


PATH = _Path(path_type=Path)


def device_option(f: F) -> F:
    """`--device`."""
    return click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where to run [default: auto].")(f)


def data_option(f: F) -> F:
    """`--data`."""
    text = (
        "Images: a folder in ImageFolder layout, cifar10:ROOT (and other torchvision sets), or the built-in digits "
        "and photodigits."
    )
    return click.option("--data", metavar="SPEC", shell_complete=completion.DATA, help=text)(f)


def seed_option(f: F) -> F:
    """`--seed`."""
    return click.option("--seed", type=int, metavar="N", help="Seed of everything random [default: 0].")(f)


def trust_option(f: F) -> F:
    """`--trust-code`."""
    text = "Run the Python code that a run or a config names to build its network."
    return click.option("--trust-code", is_flag=True, default=None, help=text)(f)


def input_options(f: F) -> F:
    """How images are prepared for the network."""
    for option in reversed(
        [
            click.option("--input-size", metavar="H[xW]", help="Input size in pixels [default: MODEL's own]."),
            click.option("--mean", metavar="X[,X,X]", help="Mean by which inputs are normalised."),
            click.option("--std", metavar="X[,X,X]", help="Standard deviation by which inputs are normalised."),
        ]
    ):
        f = option(f)
    return f


def model_options(f: F) -> F:
    """The options of the network and of its input."""
    text = "Weights of MODEL [default: DEFAULT]."
    weights = click.option("--weights", metavar="DEFAULT|NAME|none|PATH", shell_complete=completion.WEIGHTS, help=text)
    text = "Number of outputs [default: as the weights have]."
    classes = click.option("--num-classes", type=int, metavar="N", help=text)
    text = "An argument of MODEL's function, such as width=0.5; several may be given."
    arguments = click.option("--model-arg", metavar="NAME=VALUE", multiple=True, help=text)
    return weights(classes(arguments(input_options(seed_option(trust_option(f))))))


def loader_options(f: F) -> F:
    """How images are read."""
    f = click.option("--workers", type=int, metavar="N", help="Processes that read images [default: 0].")(f)
    return click.option(
        "--batch-size", type=int, metavar="N", help="Images at a time [default: 64; on a CPU, fewer for accuracy]."
    )(f)


def config_option(f: F) -> F:
    """`--config`."""
    return click.option("--config", type=PATH, metavar="FILE", help="YAML file of options; flags win over it.")(f)


def format_option(f: F) -> F:
    """`--format` of reports."""
    formats = click.Choice(["table", "markdown", "csv", "json", "html"])
    return click.option("--format", "format_", type=formats, default="table", help="How to print [default: table].")(f)


class RuntimeName(click.ParamType):  # type: ignore[type-arg]
    """`NAME` or `NAME:PRECISION` of a registered runtime; UsageError for anything else."""

    name = "runtime"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text itself, once it is known to be good."""
        parse_runtime(value)
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The registered names that begin so."""
        return [CompletionItem(name) for name in sorted(REGISTRY) if name.startswith(incomplete)]


def runtime_option(f: F) -> F:
    """`--runtime`."""
    known = ", ".join(sorted(REGISTRY))
    text = f"Runtime that latency is measured in: {known}; budgets hold in the first of several [default: torch]."
    return click.option("--runtime", type=RuntimeName(), multiple=True, metavar="NAME[:PRECISION]", help=text)(f)


def timing_options(f: F) -> F:
    """How latency is measured."""
    layouts = click.Choice(["contiguous", "channels_last"])
    layout = click.option("--memory-format", type=layouts, help="Memory format [default: the network's own].")
    threads = click.option("--threads", type=int, metavar="N", help="CPU threads while timing [default: torch's].")
    return runtime_option(threads(layout(f)))


def echo(text: str = "", coloured: bool = True) -> None:
    """Print lines, `coloured` where a terminal shows colours.

    What they hold may come from files, and no character of it moves or colours the terminal.
    """
    if coloured and has_colours():
        write_coloured(plain_lines(text))
    else:
        click.echo(plain_lines(text))


def echo_table(
    rows: Iterable[Sequence[str]], headers: Sequence[str], widths: Sequence[int | None], align: str = ""
) -> None:
    """Print a table, names first; `widths` wraps columns, and `align` has an l or an r a column."""
    from cnncompress.reporting.layout import named, table, terminal_width

    cells, aligned, limit = list(rows), align or "l" * len(headers), terminal_width()
    echo(named(lambda wrapped: table(headers, cells, aligned, "table", wrapped, limit), widths, limit))
