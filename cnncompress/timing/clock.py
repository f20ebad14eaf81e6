"""Reading the clock, on devices that work ahead too; and the number of CPU threads."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def cpu_threads(number: int | None) -> Iterator[None]:
    """Run the block with so many CPU threads (None leaves them)."""
    before = torch.get_num_threads()
    try:
        if number is not None:
            torch.set_num_threads(number)
        yield
    finally:
        torch.set_num_threads(before)


def preemptions() -> int:
    """How often the system has taken the processor away from this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


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
