"""Milliseconds of single layers and chains, in the state of the caches that they meet within a network.

A network has touched all its other weights since it last used a layer's, but has only just written the layer's input.
So the last cache is cleared before each round, and each chain is timed right after a twin of it with other weights.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cnncompress.chains.modules import FactoredLayer
from cnncompress.chains.spec import Chain, Pair, Stage
from cnncompress.latency.clock import cpu_threads, milliseconds, preemptions
from cnncompress.latency.setting import TimingSetting, last_cache_bytes
from cnncompress.network.device import resolve_device
from cnncompress.network.memory_format import MEMORY_FORMATS

ROUNDS = (5, 15)  # at least and at most
EXTRA = 3  # times as many rounds where other processes keep breaking in
ENOUGH = 3  # undisturbed times that are as good as all
SPEND = 25.0  # milliseconds for one chain, within those
LONG = 8.0  # what runs longer than so many milliseconds needs no twin
QUANTILE = 0.2  # below the median, as other work on the machine only ever adds to a time
HELD = 2**20  # bytes of an output that stays meanwhile, so that the next one does not find its memory in a cache
BLOCK = 2**18


@dataclass(frozen=True)
class Job:
    """A chain, and how it runs."""

    chain: Chain
    lowering: str = ""


def measure(jobs: Sequence[Job], size: Pair, setting: TimingSetting) -> list[float]:
    """Milliseconds of each chain for a batch of inputs of height and width `size`, measured in turns.

    A lowering that does not run here takes forever; RuntimeError where a plain chain does not.
    """
    device = resolve_device(setting.device)
    inputs = make_input(jobs[0].chain[0], size, setting, device)
    with cpu_threads(setting.threads), torch.inference_mode():
        cache = last_cache_bytes(device)
        sweep = torch.zeros(2 * cache, dtype=torch.uint8, device=device).view(torch.int64)
        pairs = [_pair(job, setting, device, 2 * cache) for job in jobs]
        first = [_first(job, pair, inputs, device) for job, pair in zip(jobs, pairs, strict=True)]
        running = [k for k, ms in enumerate(first) if ms < math.inf]
        spent = sum(first[k] for k in running)
        rounds = min(max(math.ceil(SPEND * len(running) / max(spent, 1e-3)), ROUNDS[0]), ROUNDS[1])
        samples: list[list[tuple[bool, float]]] = [[] for _ in jobs]
        for i in range(EXTRA * rounds):
            if i >= rounds and all(_clean(samples[k]) for k in running):
                break
            sweep.sum()
            for j in range(len(running)):
                k = running[(i + j) % len(running)]
                before = preemptions()
                spent = _once(pairs[k], inputs, device, first[k] < LONG)
                samples[k].append((preemptions() == before, spent))
    return [_typical(taken) if taken else math.inf for taken in samples]


def _first(job: Job, pair: tuple[nn.Module, nn.Module], inputs: Tensor, device: torch.device) -> float:
    """Milliseconds of a chain the second time; infinity for a lowering that fails."""
    try:
        return [_once(pair, inputs, device, twin=True) for _ in range(2)][-1]
    except RuntimeError:
        if not job.lowering:
            raise
        return math.inf


def _typical(taken: Sequence[tuple[bool, float]]) -> float:
    return float(np.quantile(_clean(taken) or [ms for _, ms in taken], QUANTILE))


def _clean(samples: Sequence[tuple[bool, float]]) -> list[float]:
    """The times during which nothing else took the processor, where there are enough of them."""
    times = [ms for clean, ms in samples if clean]
    return times if len(times) >= ENOUGH else []


def _once(pair: tuple[nn.Module, nn.Module], inputs: Tensor, device: torch.device, twin: bool) -> float:
    held = pair[0](inputs) if twin else None
    if held is not None and held.numel() * held.element_size() > HELD:
        held = None
    return milliseconds(lambda: pair[1](inputs), device)


def make_input(spec: Stage, size: Pair, setting: TimingSetting, device: torch.device) -> Tensor:
    """Random numbers that a layer takes in: [batch, C, h, w], or [batch, positions, C] for a Linear."""
    dtype = getattr(torch, setting.dtype)
    if spec.linear:
        positions = () if size == (1, 1) else (size[0],)
        return _normal(setting.batch, *positions, spec.in_channels).to(device, dtype)
    values = _normal(setting.batch, spec.in_channels, *size).to(device, dtype)
    return values.contiguous(memory_format=MEMORY_FORMATS[setting.memory_format])


def _pair(job: Job, setting: TimingSetting, device: torch.device, enough: int) -> tuple[nn.Module, nn.Module]:
    """A chain with random weights and its twin: the same module where its weights alone fill `enough` bytes."""
    dtype = getattr(torch, setting.dtype)
    module = FactoredLayer(job.chain, job.lowering, device="meta", dtype=dtype).to_empty(device=device).eval()
    fill_randomly(module)
    module = module.to(memory_format=MEMORY_FORMATS[setting.memory_format])  # type: ignore[call-overload]
    large = sum(p.numel() * p.element_size() for p in module.parameters()) >= enough
    return (module if large else copy.deepcopy(module)), module


def fill_randomly(chain: FactoredLayer) -> None:
    """Random permutations, and kernels that keep the scale of what they see: tiny numbers would take longer."""
    for stage, module in zip(chain.chain, chain, strict=True):
        if stage.reorders:
            stage.write_kernel(module, torch.randperm(stage.in_channels, generator=torch.Generator().manual_seed(0)))
        for parameter in module.parameters():
            _fill(parameter, 1 / math.sqrt(parameter[0].numel()) if parameter.dim() > 1 else 0.0)


def _fill(tensor: Tensor, scale: float) -> None:
    """Random numbers, a block of them again and again: drawing hundreds of megabytes would take longer than timing."""
    block = _normal(min(BLOCK, tensor.numel())).mul_(scale).to(tensor.device)
    flat = tensor.data.view(-1)
    for part in flat.split(BLOCK):
        part.copy_(block[: len(part)])


def _normal(*shape: int) -> Tensor:
    """Random numbers of their own generator: the caller's is left as it is."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
