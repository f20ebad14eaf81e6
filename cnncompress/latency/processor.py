"""What the system tells of the processor. Imports no torch."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path


def name() -> str:
    """The model, as its maker calls it where the system tells."""
    return next(iter(_values("model name")), "") or platform.processor() or platform.machine()


def features() -> frozenset[str]:
    """Its extensions by Linux's names; none where the system does not tell."""
    return frozenset(word for key in ("flags", "Features") for text in _values(key)[:1] for word in text.split())


@cache
def _values(key: str) -> tuple[str, ...]:
    """What Linux says of each processor under a key."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ()
    pairs = (line.partition(":") for line in lines)
    return tuple(value.strip() for found, _, value in pairs if found.strip() == key)
