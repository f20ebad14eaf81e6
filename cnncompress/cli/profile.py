"""`cnncompress profile`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cnncompress.cli import completion, frame, options
from cnncompress.errors import UsageError
from cnncompress.latency.runtimes import get_runtime
from cnncompress.latency.setting import TimingSetting, in_runtimes

if TYPE_CHECKING:
    from cnncompress.api import Latency, LayerTime, Profile


@frame.command(
    "profile",
    "profile runs/resnet50 --batch-size 8 --layers",
)
@click.argument("model", shell_complete=completion.MODEL)
@options.model_options
@click.option("--batch-size", type=int, metavar="N", default=1, help="Images timed at once [default: 1].")
@options.timing_options
@click.option("--layers", is_flag=True, help="The time of each layer too; for a run, before and after.")
@click.option(
    "--latency-table",
    type=options.PATH,
    metavar="FILE",
    help="Write what layers and their chains take in the first runtime, for `decompose --latency-table`.",
)
@options.device_option
def command(
    batch_size: int,
    runtime: tuple[str, ...],
    threads: int | None,
    memory_format: str | None,
    layers: bool,
    latency_table: Path | None,
    device: str | None,
    **flags: Any,
) -> None:
    """Params, MACs, size and latency of MODEL.

    MODEL is a network's name, see `decompose`, or a run, which is timed in turns with its original.
    """
    from cnncompress.config import ModelSettings, merge
    from cnncompress.config.early import check_text_output, write_text

    settings = merge(ModelSettings, None, flags)
    setting = TimingSetting("torch", "", device or "auto", batch_size, threads, memory_format or "")
    timings = in_runtimes(setting, runtime)
    if layers:
        need_layer_times(timings)
    frame.begin(settings)
    if latency_table is not None:
        check_text_output(latency_table)
    from tabulate import tabulate

    from cnncompress.api import layer_times, measured_table, run_profile

    opened, cost, measured = run_profile(settings, timings)
    ways = zip(timings, map(_original_format, measured), strict=True)
    by_layer = [layer_times(opened, timing, layout) for timing, layout in ways] if layers else []
    text = "" if latency_table is None else measured_table(opened, timings[0])
    if len(measured) > 1:
        echo_side_by_side(measured)
    rows = cost_rows(cost) + [row for times in measured for row in latency_rows(times) if len(measured) == 1]
    options.echo(f"{opened.name}, {opened.weights}, one image of {'×'.join(map(str, cost.input_shape[1:]))}")
    options.echo(tabulate(rows, tablefmt="plain", disable_numparse=True))
    for times in measured:
        one = list(times.values())[-1]
        where = f" in {one.setting.label}" if len(measured) > 1 else _where(one)
        options.echo(f"latency{where}: batch {one.setting.batch}, {one.setting.words}")
    for timed_layers, times in zip(by_layer, measured, strict=False):
        if timed_layers is not None:
            *before, one = times.values()
            options.echo()
            echo_layers(timed_layers, one, before[-1] if before else None)
    if None in by_layer:
        hidden = ", ".join(t.label for t, times in zip(timings, by_layer, strict=True) if times is None)
        options.echo(f"no times by layer in {hidden}: what layers take does not show there")
    echo_slower(measured)
    if latency_table is not None:
        write_text(latency_table, text)
        frame.tell_written(latency_table)


def need_layer_times(timings: Sequence[TimingSetting]) -> None:
    """UsageError where none of the runtimes tells what layers take."""
    hidden = [timing.runtime for timing in timings if not get_runtime(timing.runtime).shows_layers]
    if len(hidden) == len(timings):
        raise UsageError(
            f"{', '.join(dict.fromkeys(hidden))}: what layers take does not show there; leave out --layers"
        )


def _original_format(times: Mapping[str, Latency]) -> str:
    """The memory format that a run's original is fastest in; "" without one."""
    *before, _ = times.values()
    return before[-1].setting.memory_format if before else ""


def _where(latency: Latency) -> str:
    return "" if latency.setting.label == "torch" else f" in {latency.setting.label}"


def cost_rows(cost: Profile) -> list[list[str]]:
    """The cost of a network on one image, as rows."""
    rows = [
        ["params", f"{cost.params:,}"],
        ["MACs", f"{cost.total_macs:,}"],
        ["FLOPs (2 × MACs)", f"{2 * cost.total_macs:,}"],
        ["size", f"{cost.size_bytes:,} bytes"],
    ]
    if cost.other_macs:
        rows.append(["MACs outside convolution and linear layers", f"{cost.other_macs:,}"])
    return rows


def echo_side_by_side(measured: Sequence[Mapping[str, Latency]]) -> None:
    """The times of a network and its fastest original in several runtimes, after the sentence that they come to."""
    from cnncompress.reporting.layout import fill, terminal_width
    from cnncompress.reporting.times import Beside, headline, legend, time_table

    timed = []
    for times in measured:
        *before, now = times.values()
        timed.append(Beside(now, before[-1].median, before[-1]) if before else Beside(now))
    options.echo(fill(headline("this plan", timed), terminal_width()))
    options.echo()
    headers, rows, align = time_table({"": timed}, percentiles=(terminal_width() or 100) >= 100)
    options.echo_table(rows, headers, [None] * len(headers), align)
    options.echo()
    options.echo(fill(legend({"": timed}), terminal_width()))
    options.echo()


def latency_rows(times: Mapping[str, Latency]) -> list[list[str]]:
    """The latency of a network in one runtime and of its originals, and its share of theirs, as rows."""
    one = list(times.values())[-1]
    what = f"latency{_where(one)}"
    names = [*list(times)[:-1], "compressed" if len(times) > 1 else list(times)[-1]]
    timed = zip(names, times.values(), strict=True)
    rows = [[f"{what}, {n}", f"{t.median:.2f} ms (p10 {t.p10:.2f}, p90 {t.p90:.2f})"] for n, t in timed]
    rows += [[f"{what}, share of the {n}", f"{one.median / times[n].median:.2f}"] for n in list(times)[:-1]]
    return rows


def echo_slower(measured: Sequence[Mapping[str, Latency]]) -> None:
    """A line where the network of a run takes no less time than its fastest original in some runtimes."""
    from cnncompress.reporting.layout import fill, terminal_width
    from cnncompress.reporting.times import not_faster

    pairs = [list(times.values())[-2:] for times in measured if len(times) > 1]
    shares = [(now.setting.label, now.median / before.median) for before, now in pairs]
    for line in not_faster("the compressed network", shares):
        options.echo(fill(line, terminal_width()))


def echo_layers(layer_times: Sequence[LayerTime], now: Latency, before: Latency | None) -> None:
    """The time of each layer, of all of them and of the rest; and which chains are slower than what they replaced."""
    sums = [sum(t.after for t in layer_times), sum(t.before or 0 for t in layer_times)]
    rest = [now.median - sums[0], before.median - sums[1] if before else 0.0]
    ends = [("all layers", sums), ("everything else", [max(0.0, ms) for ms in rest])]
    if before is None:
        rows = [[t.layer, t.shape, f"{t.after:.3f}", f"{t.after / now.median:.1%}"] for t in layer_times]
        rows += [[name, "", f"{ms:.3f}", f"{ms / now.median:.1%}"] for name, (ms, _) in ends]
        options.echo_table(rows, ["layer", "shape", "ms", "share"], [None, 40, None, None], "llrr")
        return
    rows = [[t.layer, t.shape, t.becomes, *_both(t.before, t.after)] for t in layer_times]
    rows += [[name, "", "", *_both(then, ms)] for name, (ms, then) in ends]
    headers = ["layer", "was", "is", "ms before", "ms after", "share"]
    options.echo_table(rows, headers, [None, 30, 34, None, None, None], "lllrrr")
    for t in layer_times:
        if t.slower:
            options.echo(t.slower_in_words)


def _both(before: float | None, after: float) -> list[str]:
    if not before:
        return ["–", f"{after:.3f}", "–"]
    return [f"{before:.3f}", f"{after:.3f}", f"{after / before:.2f}"]
