"""How OpenMP's threads wait for work between the layers of a network."""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path

KEYS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
CPUINFO = Path("/proc/cpuinfo")  # on Linux, where PyTorch comes with GNU's OpenMP
# About 50 microseconds: a turn of the loop is one pause, of about 140 cycles on Intel's processors since Skylake and
# about half as many on AMD's.
TURNS_ON_INTEL = 1000
TURNS = 2000


def set_waiting(environment: MutableMapping[str, str]) -> None:
    """Let threads wait in a busy loop for about 50 microseconds before they sleep, unless the user has set how long.

    GNU's OpenMP reads it when torch is first imported. By itself it takes 300,000 turns, in which it keeps the cores
    from whoever shares the machine. Without any, threads sleep between layers, and a small network that runs alone
    takes up to three times as long.
    """
    if not any(key in environment for key in KEYS):
        environment["GOMP_SPINCOUNT"] = str(turns(_cpuinfo()))


def turns(cpuinfo: str) -> int:
    """Turns of the busy loop that take about 50 microseconds on the processor that `/proc/cpuinfo` tells about."""
    return TURNS_ON_INTEL if "GenuineIntel" in cpuinfo else TURNS


def _cpuinfo() -> str:
    """The first processor's lines, "" where the system has none."""
    try:
        with CPUINFO.open(errors="replace") as file:
            return file.read(1000)
    except OSError:
        return ""
