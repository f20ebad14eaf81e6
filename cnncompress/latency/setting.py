"""How something is timed: one value, from the command line down to the key of the cache. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cnncompress.errors import UsageError, nearest
from cnncompress.latency.runtimes import Runtime, get_runtime

PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp64": "float64", "int8": "int8"}
MOST_THREADS = 64  # on a machine of fewer processors


@dataclass(frozen=True)
class TimingSetting:
    """What a time depends on besides what is timed and the machine.

    As it is asked for, `dtype` and `memory_format` are "" for those of each network, `device` may be `auto`, and
    `threads` None is as many as torch uses. All are given in what a measurement says of itself.
    """

    runtime: str = "torch"
    dtype: str = ""
    device: str = "cpu"
    batch: int = 1
    threads: int | None = None
    memory_format: str = ""

    @property
    def label(self) -> str:
        """The runtime, with its precision where that is not single."""
        words = [word for word, dtype in PRECISIONS.items() if dtype == self.dtype and word != "fp32"]
        return ":".join([self.runtime, *words])

    @property
    def words(self) -> str:
        """Where something runs, after the runtime and the batch."""
        threads = "" if self.threads is None else f"{self.threads} thread{'s' * (self.threads != 1)}"
        return ", ".join(filter(None, (self.device, threads, self.dtype, self.memory_format)))

    def within(self, text: str) -> TimingSetting:
        """The same in another runtime, `NAME` or `NAME:PRECISION`; UsageError as `parse_runtime`."""
        runtime, dtype = parse_runtime(text)
        memory_format = self.memory_format if get_runtime(runtime).memory_formats else ""
        return replace(self, runtime=runtime, dtype=dtype, memory_format=memory_format)

    def check(self) -> None:
        """UsageError for values that make no sense, and for what the runtime does not have."""
        runtime = get_runtime(self.runtime)
        if self.batch < 1:
            raise UsageError(f"the batch size is {self.batch}; give a whole number from 1 on")
        check_threads(self.threads)
        _check_known("dtype", self.dtype, ["", *(PRECISIONS[word] for word in runtime.precisions)], runtime)
        _check_known("memory format", self.memory_format, ["", *runtime.memory_formats], runtime)


def in_runtimes(setting: TimingSetting, texts: Sequence[str]) -> tuple[TimingSetting, ...]:
    """A setting in each of several runtimes, by default in its own; UsageError where one makes no sense."""
    settings = tuple(dict.fromkeys(setting.within(text) for text in texts)) or (setting,)
    for one in settings:
        one.check()
    return settings


def parse_runtime(text: str) -> tuple[str, str]:
    """The name and the dtype in `NAME` or `NAME:PRECISION`, the dtype "" where it is the network's own.

    UsageError for an unknown runtime, and for a precision that it does not have.
    """
    name, colon, precision = text.partition(":")
    runtime = get_runtime(name)
    if colon and precision not in runtime.precisions:
        known = f"it has {', '.join(runtime.precisions)}"
        hint = nearest(precision, runtime.precisions)
        raise UsageError(f"the runtime {name} has no precision '{precision}' ({known}){hint}")
    return name, PRECISIONS[precision] if colon else ""


def check_threads(number: int | None) -> None:
    """UsageError for a number of CPU threads below 1, or so high that the system would end the process."""
    most = max(MOST_THREADS, os.cpu_count() or 1)
    if number is not None and not 1 <= number <= most:
        raise UsageError(f"the number of threads is {number}; give --threads a whole number from 1 to {most}")


def _check_known(what: str, value: str, known: Sequence[str], runtime: Runtime) -> None:
    if value not in known:
        names = list(filter(None, known))
        told = f"known to {runtime.name}: {', '.join(names)}" if names else f"{runtime.name} has none to choose"
        raise UsageError(f"unknown {what} '{value}' ({told}){nearest(value, names)}")
