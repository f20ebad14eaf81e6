"""Milliseconds of whole networks and of their layers, beside other networks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cnncompress.chains.modules import FactoredLayer
from cnncompress.errors import CompressError, UsageError, nearest
from cnncompress.latency.clock import check_threads, cpu_threads, milliseconds, synchronize
from cnncompress.latency.timed import Latency
from cnncompress.network.copying import clone, same_random_numbers
from cnncompress.network.device import resolve_device
from cnncompress.network.memory_format import MEMORY_FORMATS, memory_format_of
from cnncompress.network.run import run
from cnncompress.terminal.console import bar


def latency(
    models: Mapping[str, nn.Module],
    example: Tensor,
    *,
    batch: int = 1,
    threads: int | None = None,
    device: str = "cpu",
    memory_format: str | None = None,
    warmup: int = 3,
    repeats: int = 20,
    min_seconds: float = 1.0,
    progress: bool = False,
) -> dict[str, Latency]:
    """Milliseconds of a forward pass of each network, measured in turns so that a slow moment hits all of them.

    Copies of the networks run in eval mode on `batch` images (those of `example` [n, c, h, w], repeated as needed)
    with `threads` CPU threads (None leaves them), in `memory_format` (None: each in its own). After `warmup` rounds
    there are at least `repeats`, and as many as `min_seconds` for each network holds. Raises UsageError for settings
    that make no sense, CompressError without the device, without memory or if a forward pass fails.
    """
    _check(batch, threads, repeats, memory_format)
    target = resolve_device(device)
    prepared = {name: _prepare(m, example, batch, target, memory_format) for name, m in models.items()}
    samples: dict[str, list[float]] = {name: [] for name in models}
    names = list(models)
    timed = bar(progress=progress, desc="latency", unit=" rounds", leave=False)
    with cpu_threads(threads), torch.inference_mode(), same_random_numbers(), timed:
        for name in names * warmup:
            run(*prepared[name])
        start, rounds = time.perf_counter(), 0
        while rounds < repeats or time.perf_counter() - start < min_seconds * len(names):
            shift = rounds % max(1, len(names))
            for name in names[shift:] + names[:shift]:
                samples[name].append(milliseconds(lambda name=name: run(*prepared[name]), target))  # type: ignore[misc]
            rounds += 1
            timed.update()
        used = torch.get_num_threads()
    return {
        name: _summary(
            samples[name], batch, used, target, prepared[name][1].dtype, memory_format or memory_format_of(m)
        )
        for name, m in models.items()
    }


def layer_latency(model: nn.Module, example: Tensor, **settings: Any) -> dict[str, Latency]:
    """Milliseconds of each layer in a forward pass, all its calls together; a decomposed layer is one.

    Settings and errors as for `layer_latencies`.
    """
    return layer_latencies({"": model}, example, **settings)[""]


def layer_latencies(
    models: Mapping[str, nn.Module],
    example: Tensor,
    *,
    batch: int = 1,
    threads: int | None = None,
    device: str = "cpu",
    memory_format: str | None = None,
    warmup: int = 3,
    repeats: int = 20,
) -> dict[str, dict[str, Latency]]:
    """`layer_latency` of several networks, which run in turns.

    Arguments and errors as for `latency`. On a GPU every layer is waited for, so they add up to more than the network.
    """
    _check(batch, threads, repeats, memory_format)
    target = resolve_device(device)
    prepared = {name: _prepare(m, example, batch, target, memory_format) for name, m in models.items()}
    spent: dict[str, float] = {}
    samples: dict[str, dict[str, list[float]]] = {name: {} for name in models}
    for ready, _ in prepared.values():
        for layer, module in _units(ready):
            _time_calls(layer, module, spent, target)
    with cpu_threads(threads), torch.inference_mode(), same_random_numbers():
        for i in range(warmup + repeats):
            for name in models:
                spent.clear()
                run(*prepared[name])
                if i >= warmup:
                    for layer, value in spent.items():
                        samples[name].setdefault(layer, []).append(value)
        used = torch.get_num_threads()
    found = {}
    for name, model in models.items():
        how = batch, used, target, prepared[name][1].dtype, memory_format or memory_format_of(model)
        found[name] = {layer: _summary(times, *how) for layer, times in samples[name].items()}
    return found


def _units(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Decomposed layers, and the plain layers outside of them."""
    inside = {m for f in model.modules() if isinstance(f, FactoredLayer) for m in f.modules() if m is not f}
    for name, module in model.named_modules():
        if isinstance(module, FactoredLayer | nn.Conv2d | nn.Linear) and module not in inside:
            yield name, module


def _time_calls(name: str, module: nn.Module, spent: dict[str, float], device: torch.device) -> None:
    started = 0.0

    def before(*_: Any) -> None:
        nonlocal started
        synchronize(device)
        started = time.perf_counter()

    def after(*_: Any) -> None:
        synchronize(device)
        spent[name] = spent.get(name, 0.0) + (time.perf_counter() - started) * 1000

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)


def _check(batch: int, threads: int | None, repeats: int, memory_format: str | None) -> None:
    check_threads(threads)
    for what, value in (("batch size", batch), ("number of repeats", repeats)):
        if value is not None and value < 1:
            raise UsageError(f"the {what} is {value}; give a whole number from 1 on")
    if memory_format is not None and memory_format not in MEMORY_FORMATS:
        known = ", ".join(MEMORY_FORMATS)
        raise UsageError(f"unknown memory format '{memory_format}' ({known}){nearest(memory_format, MEMORY_FORMATS)}")


def _prepare(
    model: nn.Module, example: Tensor, batch: int, device: torch.device, memory_format: str | None
) -> tuple[nn.Module, Tensor]:
    """A copy of the network, ready to run, and its input in the network's own dtype."""
    layout = MEMORY_FORMATS[memory_format or memory_format_of(model)]
    try:
        ready: Any = clone(model).eval()
        ready = ready.to(device=device, memory_format=layout) if memory_format else ready.to(device=device)
        dtype = next((p.dtype for p in ready.parameters() if p.is_floating_point()), example.dtype)
        inputs = example.repeat(-(-batch // len(example)), 1, 1, 1)[:batch].to(device, dtype)
        return ready, inputs.contiguous(memory_format=layout)
    except RuntimeError as error:
        reason = str(error).split("\n")[0]
        raise CompressError(
            f"cannot put {type(model).__name__} with a batch of {batch} on {device}: {reason}"
        ) from error


def _summary(
    samples: list[float], batch: int, threads: int, device: torch.device, dtype: torch.dtype, memory_format: str
) -> Latency:
    median, p10, p90 = np.percentile(samples, [50, 10, 90])
    kind = str(dtype).removeprefix("torch.")
    return Latency(float(median), float(p10), float(p90), batch, threads, str(device), kind, memory_format)
