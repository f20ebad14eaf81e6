"""How OpenMP's threads wait for work between the layers of a network."""

from __future__ import annotations

from collections.abc import MutableMapping

from cnncompress.processor import maker

KEYS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# A turn of the loop is one pause: 10 ns on the newest of Intel's processors, 45 from Skylake to Ice Lake, 22 on AMD's.
# The wait has to outlast Python's way from one layer to the next, some 20 microseconds, on all of them: threads that
# sleep there cost a run that is alone more than a longer wait costs two that share.
TURNS_ON_INTEL = 5000
TURNS = 2000


def set_waiting(environment: MutableMapping[str, str]) -> None:
    """Let threads wait in a busy loop for 50 to 200 microseconds before they sleep, unless the user has set how long.

    GNU's OpenMP reads it when torch is first imported. By itself it takes 300,000 turns, in which it keeps the cores
    from whoever shares the machine. Without any, threads sleep between layers, and a small network that runs alone
    takes up to three times as long.
    """
    if not any(key in environment for key in KEYS):
        environment["GOMP_SPINCOUNT"] = str(turns(maker()))


def turns(maker: str) -> int:
    """Turns of the busy loop on the processors of a maker, named as they name it."""
    return TURNS_ON_INTEL if maker == "GenuineIntel" else TURNS
