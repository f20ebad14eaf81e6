"""The memory formats that a network runs in, and the one that it is fastest in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import suppress

from torch import Tensor, nn

from cnncompress.errors import CompressError
from cnncompress.latency.runtimes import get_runtime
from cnncompress.latency.setting import TimingSetting
from cnncompress.latency.timed import Latency
from cnncompress.network.copying import clone
from cnncompress.network.memory_format import MEMORY_FORMATS, memory_format_of, to_memory_format
from cnncompress.network.run import inference, run

WORTH_SHARE = 0.97  # of the latency: a smaller gain is no reason to change the memory format


def converted(model: nn.Module, example: Tensor, memory_format: str) -> nn.Module:
    """A copy of a network in a memory format, after two forward passes; CompressError where it does not run in it."""
    ready = to_memory_format(clone(model), memory_format)
    with inference(ready):
        for images in (example, example.contiguous(memory_format=MEMORY_FORMATS[memory_format])):
            run(ready, images)
    return ready


def in_formats(model: nn.Module, example: Tensor, setting: TimingSetting | None = None) -> dict[str, nn.Module]:
    """A network by the memory formats that it runs in: itself in its own, which comes first, and copies in others.

    There are no others in a runtime for which they are all the same.
    """
    networks = {memory_format_of(model): model}
    for name in get_runtime((setting or TimingSetting()).runtime).memory_formats:
        if name not in networks:
            with suppress(CompressError):
                networks[name] = converted(model, example, name)
    return networks


def fastest(latencies: Mapping[str, Latency]) -> str:
    """The memory format of the least latency; the first one, a network's own, unless another is `WORTH_SHARE` it."""
    own, best = next(iter(latencies)), min(latencies, key=lambda name: latencies[name].median)
    return best if latencies[best].median < WORTH_SHARE * latencies[own].median else own


def beside(original: Latency, other: Latency) -> Latency:
    """The latency of a network that was timed in turns with its original."""
    return dataclasses.replace(other, original=original.median)


def in_words(originals: Mapping[str, Latency]) -> list[str]:
    """What another memory format alone saves of the latency of an original, by memory format, its own first."""
    best, own = fastest(originals), next(iter(originals))
    if best == own:
        return []
    gain = originals[best].median / originals[own].median
    return [f"the original takes {gain:.2f} of its time in {best} instead of {own}; shares of latency are of that"]
