"""Whether the machine has other work: the same small piece of work takes longer at times."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from cnncompress.latency.machine import complete
from cnncompress.latency.setting import TimingSetting

MATRIX_SIDE = 256  # of the matrices that are multiplied
RUNS = 40  # of that, some 20 ms in all
BUSY_FACTOR = 1.5  # times as long as the shortest run takes the one at `SLOW_QUANTILE` where there is other work
SLOW_QUANTILE = 0.8
WAIT_SECONDS = 5.0  # seconds, at most, until there is none
PAUSE_SECONDS = 0.25  # seconds
OTHER_WORK = (
    "the machine had other work while times were measured; measured alone they may be shorter, and are steadier"
)


def spread(threads: int) -> float:
    """How many times as long as the shortest of a few equal runs on some threads most others take at most."""
    before, matrix = torch.get_num_threads(), torch.ones(MATRIX_SIDE, MATRIX_SIDE)
    torch.set_num_threads(threads)
    try:
        times = []
        for _ in range(RUNS):
            start = time.perf_counter()
            torch.mm(matrix, matrix)
            times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return float(np.quantile(times, SLOW_QUANTILE) / min(times))


def wait_for_quiet(settings: Sequence[TimingSetting]) -> str:
    """Wait a little until a CPU that is to be timed has no other work; "" or, where it still has, a sentence."""
    threads = [one.threads or 1 for one in map(complete, settings) if one.device == "cpu"]
    deadline = time.monotonic() + WAIT_SECONDS
    while threads and spread(max(threads)) > BUSY_FACTOR:
        if time.monotonic() > deadline:
            return OTHER_WORK
        time.sleep(PAUSE_SECONDS)
    return ""
