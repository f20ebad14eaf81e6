"""What Linux tells of the processor. Imports no torch."""

from __future__ import annotations

from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
X86 = "sse2"
EXACT_SUMS = {"avx512_vnni", "avx_vnni", "amx_int8"}  # add products of 8-bit integers in 32 bits


def name() -> str:
    """The model, as its maker calls it where the system tells."""
    import platform

    return _first().get("model name", "") or platform.processor() or platform.machine()


def maker() -> str:
    """The word that its maker has for itself, "" where the system does not tell."""
    return _first().get("vendor_id", "")


def features() -> frozenset[str]:
    """Its extensions by Linux's names; none where the system does not tell."""
    return frozenset(word for key in ("flags", "Features") for word in _first().get(key, "").split())


def sums_overflow() -> bool:
    """True where sums of products of 8-bit integers do: an x86 processor without VNNI adds two of them in 16 bits.

    False where the system does not tell.
    """
    known = features()
    return X86 in known and not known & EXACT_SUMS


def weight_bits() -> int:
    """The bits of integer weights whose sums of products are exact: 7 where those of 8 overflow."""
    return 7 if sums_overflow() else 8


@cache
def _first() -> dict[str, str]:
    """What is said of the first processor; the lines of many would take long to make."""
    entries: dict[str, str] = {}
    try:
        with CPUINFO.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                key, colon, value = line.partition(":")
                if not colon:
                    break
                entries[key.strip()] = value.strip()
    except OSError:
        pass
    return entries
