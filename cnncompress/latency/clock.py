"""Reading the clock, on devices that work ahead too; and the number of CPU threads."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from cnncompress.errors import UsageError

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

MOST_THREADS = 64  # on a machine of fewer processors


def check_threads(number: int | None) -> None:
    """UsageError for a number of CPU threads below 1, or so high that the system would end the process."""
    most = max(MOST_THREADS, os.cpu_count() or 1)
    if number is not None and not 1 <= number <= most:
        raise UsageError(f"the number of threads is {number}; give --threads a whole number from 1 to {most}")


@contextmanager
def cpu_threads(number: int | None) -> Iterator[None]:
    """Run the block with so many CPU threads (None leaves them); UsageError as `check_threads`."""
    check_threads(number)
    before = torch.get_num_threads()
    try:
        if number is not None:
            torch.set_num_threads(number)
        yield
    finally:
        torch.set_num_threads(before)


def preemptions() -> int:
    """How often the system has taken the processor away from this process; always 0 where it does not tell."""
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(run: Callable[[], object], device: torch.device) -> float:
    """How long `run` takes on `device`."""
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) * 1000
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    with torch.cuda.device(device):
        begin.record()
        run()
        end.record()
        end.synchronize()
    return begin.elapsed_time(end)
