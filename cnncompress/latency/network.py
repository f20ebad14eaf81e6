"""Milliseconds of whole networks and of their layers, beside other networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

from torch import Tensor, nn

from cnncompress.errors import CompressError, UsageError
from cnncompress.latency.clock import Prepared, Rounds, in_turns, percentiles
from cnncompress.latency.machine import complete, of_network
from cnncompress.latency.runtimes import Runtime, get_runtime
from cnncompress.latency.runtimes.onnx_program import OnnxProgramRuntime
from cnncompress.latency.setting import TimingSetting
from cnncompress.latency.timed import Latency
from cnncompress.network.copying import clone, same_random_numbers
from cnncompress.network.modes import evaluating

ROUNDS = Rounds()
LAYER_ROUNDS = Rounds(seconds=0.0)  # of whole networks: a layer that is too short to time hardly counts

R = TypeVar("R")


def latency(
    models: Mapping[str, nn.Module],
    example: Tensor,
    setting: TimingSetting | None = None,
    rounds: Rounds | None = None,
    quickly: bool = False,
) -> dict[str, Latency]:
    """Milliseconds of a forward pass of each network, measured in turns.

    They are made ready `quickly` where a plan is timed, as chains are; where a runtime cannot, as they are exported.

    Copies of the networks run in eval mode on the setting's number of images: those of `example` [n, c, h, w], repeated
    as needed. Raises UsageError for settings that make no sense, CompressError without the runtime, the device or the
    memory, and if a forward pass fails.
    """
    setting = complete(setting or TimingSetting())
    settings = {name: of_network(setting, model) for name, model in models.items()}
    runtime = get_runtime(setting.runtime)
    stopwatch = partial(runtime.milliseconds, setting=setting)
    with runtime.running(setting), same_random_numbers():
        prepare = partial(_quickly, runtime) if quickly else runtime.prepare
        calls = [Prepared(_ready(prepare, model, example, setting)) for model in models.values()]
        samples = in_turns(calls, stopwatch, rounds or ROUNDS)
    return {
        name: Latency(*percentiles(one.milliseconds), how)
        for (name, how), one in zip(settings.items(), samples, strict=True)
    }


def program_latencies(programs: Mapping[str, bytes], example: Tensor, setting: TimingSetting) -> dict[str, Latency]:
    """Milliseconds of ONNX programs in a runtime that reads them, by the precision that each computes in, in turns.

    `example` [n, c, h, w] is the batch. Errors are those of `latency`.
    """
    runtime = get_runtime(setting.runtime)
    if not isinstance(runtime, OnnxProgramRuntime):
        raise UsageError(f"the runtime {setting.runtime} reads no ONNX programs")
    ways = {precision: complete(setting.within(f"{setting.runtime}:{precision}")) for precision in programs}
    stopwatch = partial(runtime.milliseconds, setting=complete(setting))
    calls = [Prepared(runtime.load(programs[precision], example, way)) for precision, way in ways.items()]
    samples = in_turns(calls, stopwatch, ROUNDS)
    return {
        precision: Latency(*percentiles(one.milliseconds), way)
        for (precision, way), one in zip(ways.items(), samples, strict=True)
    }


def layer_latencies(
    models: Mapping[str, nn.Module],
    example: Tensor,
    setting: TimingSetting | None = None,
    rounds: Rounds = LAYER_ROUNDS,
) -> dict[str, dict[str, Latency]] | None:
    """Milliseconds of each layer in a forward pass, all its calls together, of networks that run in turns.

    A decomposed layer is one. None where the runtime does not show the layers. Arguments and errors as for `latency`.
    """
    setting = complete(setting or TimingSetting())
    runtime = get_runtime(setting.runtime)
    if not runtime.shows_layers:
        return None
    with runtime.running(setting), same_random_numbers():
        clocks = [_ready(runtime.layer_clock, model, example, setting) for model in models.values()]
        in_turns([Prepared(clock.run) for clock in clocks], partial(runtime.milliseconds, setting=setting), rounds)
    latencies = {}
    for (name, model), clock in zip(models.items(), clocks, strict=True):
        how, times = of_network(setting, model), clock.milliseconds()
        latencies[name] = {layer: Latency(*percentiles(ms[rounds.warmup :]), how) for layer, ms in times.items()}
    return latencies


def _quickly(runtime: Runtime, model: nn.Module, inputs: Tensor, setting: TimingSetting) -> Callable[[], object]:
    """The network as chains are made ready, which not every network can be."""
    try:
        return runtime.prepare_chain(model, inputs, setting)
    except CompressError:
        return runtime.prepare(model, inputs, setting)


def _ready(
    prepare: Callable[[nn.Module, Tensor, TimingSetting], R], model: nn.Module, example: Tensor, setting: TimingSetting
) -> R:
    """What a runtime makes of a copy of a network and a batch of images; CompressError where there is no room."""
    try:
        inputs = example.repeat(-(-setting.batch // len(example)), 1, 1, 1)[: setting.batch]
        return prepare(evaluating(clone(model)), inputs, setting)
    except RuntimeError as error:
        reason = str(error).split("\n")[0]
        raise CompressError(
            f"cannot put {type(model).__name__} with a batch of {setting.batch} on {setting.device}: {reason}"
        ) from error
