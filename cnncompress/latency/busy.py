"""Whether the machine has other work: the same small piece of work takes longer at times."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from cnncompress.latency.machine import complete
from cnncompress.latency.setting import TimingSetting

SIDE = 256  # of the matrices that are multiplied
RUNS = 40  # of that, some 20 ms in all
BUSY = 1.5  # times as long as the shortest run takes the one at `SHARE` where there is other work
SHARE = 0.8
WAIT = 5.0  # seconds, at most, until there is none
PAUSE = 0.25  # seconds
OTHER_WORK = (
    "the machine had other work while times were measured; measured alone they may be shorter, and are steadier"
)


def spread(threads: int) -> float:
    """How many times as long as the shortest of a few equal runs on some threads most others take at most."""
    before, matrix = torch.get_num_threads(), torch.ones(SIDE, SIDE)
    torch.set_num_threads(threads)
    try:
        times = []
        for _ in range(RUNS):
            start = time.perf_counter()
            torch.mm(matrix, matrix)
            times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return float(np.quantile(times, SHARE) / min(times))


def wait_for_quiet(settings: Sequence[TimingSetting]) -> str:
    """Wait a little until a CPU that is to be timed has no other work; "" or, where it still has, a sentence."""
    threads = [one.threads or 1 for one in map(complete, settings) if one.device == "cpu"]
    deadline = time.monotonic() + WAIT
    while threads and spread(max(threads)) > BUSY:
        if time.monotonic() > deadline:
            return OTHER_WORK
        time.sleep(PAUSE)
    return ""
