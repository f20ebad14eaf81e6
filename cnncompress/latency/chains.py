"""Milliseconds of single layers and chains, in the state of the caches that they meet within a network.

A network has touched all its other weights since it last used a layer's, but has only just written the layer's input.
So the last cache is cleared before each round, and each chain is timed right after a twin of it with other weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from cnncompress.chains.modules import FactoredLayer
from cnncompress.chains.spec import Chain, Pair, Stage
from cnncompress.errors import CompressError
from cnncompress.latency.clock import Call, Prepared, Rounds, Samples, in_turns
from cnncompress.latency.machine import complete, last_cache_bytes
from cnncompress.latency.runtimes import get_runtime
from cnncompress.latency.setting import TimingSetting

ROUNDS = (5, 15)  # at least and at most
EXTRA_FACTOR = 3  # times as many rounds where other processes keep breaking in
SPEND_MS = 25.0  # for one chain, within those rounds
LONG_MS = 8.0  # what runs longer needs no twin
QUANTILE = 0.2  # below the median, as other work on the machine only ever adds to a time
HELD_BYTES = 2**20  # of an output that stays meanwhile, so that the next one does not find its memory in a cache
RANDOM_NUMBERS = 2**18  # random numbers that are drawn, and repeated


@dataclass(frozen=True)
class Job:
    """A chain, and how it runs."""

    chain: Chain
    lowering: str = ""


def measure(jobs: Sequence[Job], size: Pair, setting: TimingSetting) -> list[float]:
    """Milliseconds of each chain for a batch of inputs of height and width `size`, measured in turns.

    A lowering that does not run here takes forever; CompressError where a plain chain does not.
    """
    setting = complete(setting)
    setting = replace(setting, runtime=get_runtime(setting.runtime).chains_in or setting.runtime)
    runtime, device = get_runtime(setting.runtime), torch.device(setting.device)
    stopwatch = partial(runtime.milliseconds, setting=setting)
    cache = last_cache_bytes(device)
    with runtime.running(setting):
        sweep = torch.zeros(2 * cache, dtype=torch.uint8, device=device).view(torch.int64)
        inputs = make_input(jobs[0].chain[0], size, setting.batch)
        twins = [_prepare(job, inputs, setting, 2 * cache) for job in jobs]
        second = [_second_run(job, one, stopwatch) for job, one in zip(jobs, twins, strict=True)]
        running = {k: (one, second[k]) for k, one in enumerate(twins) if one is not None and second[k] < math.inf}
        timed = [one.prepared(ms < LONG_MS) for one, ms in running.values()]
        times = in_turns(timed, stopwatch, _rounds([ms for _, ms in running.values()]), sweep.sum)
    samples = dict(zip(running, times, strict=True))
    return [_typical(samples[k]) if k in samples else math.inf for k in range(len(jobs))]


def _rounds(milliseconds: Sequence[float]) -> Rounds:
    """As many rounds as there is time for calls that take so long each."""
    affordable = math.ceil(SPEND_MS * len(milliseconds) / max(sum(milliseconds), 1e-3))
    least = min(max(affordable, ROUNDS[0]), ROUNDS[1])
    return Rounds(warmup=0, least=least, seconds=0.0, undisturbed=True, most=EXTRA_FACTOR * least)


def _typical(samples: Samples) -> float:
    return float(np.quantile(samples.undisturbed or samples.milliseconds, QUANTILE))


class _Twins:
    """A chain that is ready to run, and another of the same shapes: the same one where its weights fill the cache."""

    def __init__(self, chain: Call, twin: Call) -> None:
        self.chain, self.twin = chain, twin
        self.held: object = None

    def run_twin(self) -> None:
        """Run the twin, and keep what it gives where that is small."""
        output = self.twin()
        self.held = output if _bytes(output) <= HELD_BYTES else None

    def release(self) -> None:
        """Give the memory back."""
        self.held = None

    def prepared(self, with_twin: bool = True) -> Prepared:
        """The chain for the clock, after its twin where that is asked for."""
        return Prepared(self.chain, self.run_twin, self.release) if with_twin else Prepared(self.chain)


def _bytes(output: object) -> int:
    parts = output if isinstance(output, list | tuple) else [output]
    return sum(getattr(part, "nbytes", 0) for part in parts)


def _prepare(job: Job, inputs: Tensor, setting: TimingSetting, enough: int) -> _Twins | None:
    """A chain with random weights and its twin, the same where its weights alone fill `enough` bytes.

    None for a lowering that does not run here.
    """
    runtime = get_runtime(setting.runtime)
    module = FactoredLayer(job.chain, job.lowering, device="meta").to_empty(device="cpu").eval()
    fill_randomly(module)
    large = sum(p.numel() * p.element_size() for p in module.parameters()) >= enough
    try:
        if large:
            chain = runtime.prepare_chain(module, inputs, setting)
            return _Twins(chain, chain)
        return _Twins(*runtime.prepare_twins(module, inputs, setting))
    except (CompressError, RuntimeError):
        if not job.lowering:
            raise
        return None


def _second_run(job: Job, twins: _Twins | None, stopwatch: Callable[[Call], float]) -> float:
    """Milliseconds of a chain the second time; infinity for a lowering that fails."""
    if twins is None:
        return math.inf
    try:
        rounds = Rounds(warmup=0, least=2, seconds=0.0)
        return in_turns([twins.prepared()], stopwatch, rounds)[0].milliseconds[-1]
    except (CompressError, RuntimeError):
        if not job.lowering:
            raise
        return math.inf


def make_input(spec: Stage, size: Pair, batch: int) -> Tensor:
    """Random numbers that a layer takes in: [batch, C, h, w], or [batch, positions, C] for a Linear."""
    if spec.linear:
        positions = () if size == (1, 1) else (size[0],)
        return _normal(batch, *positions, spec.in_channels)
    return _normal(batch, spec.in_channels, *size)


def fill_randomly(chain: FactoredLayer) -> None:
    """Random permutations, and kernels that keep the scale of what they see: tiny numbers would take longer."""
    for stage, module in zip(chain.chain, chain, strict=True):
        if stage.reorders:
            stage.write_kernel(module, torch.randperm(stage.in_channels, generator=torch.Generator().manual_seed(0)))
        for parameter in module.parameters():
            _fill(parameter, 1 / math.sqrt(parameter[0].numel()) if parameter.dim() > 1 else 0.0)


def _fill(tensor: Tensor, scale: float) -> None:
    """Random numbers, a block of them again and again: drawing hundreds of megabytes would take longer than timing."""
    block = _normal(min(RANDOM_NUMBERS, tensor.numel())).mul_(scale).to(tensor.device)
    flat = tensor.data.view(-1)
    for part in flat.split(RANDOM_NUMBERS):
        part.copy_(block[: len(part)])


def _normal(*shape: int) -> Tensor:
    """Random numbers of their own generator: the caller's is left as it is."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
