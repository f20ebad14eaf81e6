"""Options of commands that plan: how layers are decomposed and fitted, and how networks are timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from cnncompress.cli import completion
from cnncompress.cli.options import PATH, runtime_option
from cnncompress.names import metrics

F = Callable[..., Any]

METHOD = click.option(
    "--method",
    metavar="NAME[:k=v,...]",
    shell_complete=completion.METHOD,
    help="A decomposition or select, see `methods`; A+B for a budget [default: auto].",
)
MULTIPLE = click.option(
    "--multiple",
    type=int,
    metavar="N",
    help="Ranks in multiples of N [default: 16 in wide layers, else 1; on a GPU 8].",
)
METRIC = click.option(
    "--metric",
    metavar="NAME",
    shell_complete=completion.METRIC,
    help=f"How errors are measured: {', '.join(metrics.catalogue())} "
    f"[default: {metrics.GUIDED} with a budget or select and images, else {metrics.DEFAULT}].",
)
REFINE = click.option(
    "--refine",
    type=int,
    metavar="N",
    help="0: the method's own algorithm; 1: refit the last stage; more: sweeps over all stages "
    "[default: 1; up to 4 when correcting].",
)
CORRECT = click.option(
    "--correct",
    type=click.Choice(["auto", "none", "bias", "refit"]),
    help="Fit each chain to the outputs of the compressed layers before it: its bias, or all its kernels "
    "[default: refit with a budget or select and images, else none].",
)
RECONSTRUCT = click.option(
    "--reconstruct", type=int, metavar="N", help="Label-free gradient steps for each block [default: 0]."
)
CALIBRATION = click.option(
    "--calibration-images",
    type=int,
    metavar="N",
    help="Images for statistics, spread evenly over the data. Corrections use those that fit in memory (1 GiB for a "
    "layer's output), comparisons of answers 4 to 256 of them [default: 1000].",
)
STATISTICS = click.option(
    "--statistics",
    type=PATH,
    metavar="DIR",
    help="Take the statistics in this folder, of an exploration or a run, where they fit "
    "[default: explorations/MODEL].",
)
LAYERS = click.option("--layers", multiple=True, metavar="PATTERN", help="Only layers whose name matches (shell glob).")
SKIP = click.option("--skip", multiple=True, metavar="PATTERN", help="No layer whose name matches.")
TABLE = click.option(
    "--latency-table",
    type=PATH,
    metavar="FILE",
    help="Plan with the times that `profile --latency-table` wrote on the machine that counts; none are measured here.",
)
BATCH = click.option("--latency-batch", type=int, metavar="N", help="Batch that is timed [default: 1].")
THREADS = click.option("--threads", type=int, metavar="N", help="CPU threads while timing [default: torch's].")
MEMORY_FORMAT = click.option(
    "--memory-format",
    type=click.Choice(["contiguous", "channels_last"]),
    help="Memory format of the result [default: the network's own; with a budget the fastest].",
)
FIT = (METHOD, MULTIPLE, METRIC, REFINE, CORRECT, RECONSTRUCT, CALIBRATION, STATISTICS, LAYERS, SKIP)
TIMING = (runtime_option, TABLE, BATCH, THREADS, MEMORY_FORMAT)


def planning_options(f: F) -> F:
    """What layers become, and how they are fitted."""
    for option in reversed(FIT):
        f = option(f)
    return f


def timing_options(f: F) -> F:
    """How networks and chains are timed for a plan."""
    for option in reversed(TIMING):
        f = option(f)
    return f
