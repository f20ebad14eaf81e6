"""Options that several commands share. None means: not given, so that a config file or a default decides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

F = Callable[..., Any]
PATH = click.Path(path_type=Path)


def device_option(f: F) -> F:
    """`--device`."""
    return click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where to run [default: auto].")(f)


def data_option(f: F) -> F:
    """`--data`."""
    text = "Images: a folder in ImageFolder layout, cifar10:ROOT (and other torchvision sets), or digits."
    return click.option("--data", metavar="SPEC", help=text)(f)


def model_options(f: F) -> F:
    """Which network and how its input is prepared."""
    for option in reversed(
        [
            click.option("--weights", metavar="DEFAULT|NAME|none|PATH", help="Weights of MODEL [default: DEFAULT]."),
            click.option("--num-classes", type=click.IntRange(1), help="Outputs of a torchvision or timm network."),
            click.option("--input-size", metavar="H[xW]", help="Pixels of the input, where MODEL does not tell."),
            click.option("--mean", metavar="R,G,B", help="Mean that inputs are normalised with."),
            click.option("--std", metavar="R,G,B", help="Standard deviation that inputs are normalised with."),
            click.option("--seed", type=int, help="Seed of everything random [default: 0]."),
        ]
    ):
        f = option(f)
    return f


def loader_options(f: F) -> F:
    """How images are read."""
    f = click.option("--workers", type=click.IntRange(0), help="Processes that read images [default: 0].")(f)
    return click.option("--batch-size", type=click.IntRange(1), help="Images at a time [default: 64].")(f)


def config_option(f: F) -> F:
    """`--config`."""
    return click.option("--config", type=PATH, help="YAML file with any of these options; flags win over it.")(f)


def format_option(f: F) -> F:
    """`--format`."""
    formats = click.Choice(["table", "markdown", "csv", "json"])
    return click.option("--format", "format_", type=formats, default="table", show_default=True)(f)
