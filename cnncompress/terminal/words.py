"""Numbers and names in words."""

from __future__ import annotations

import math
from collections.abc import Sequence


def human(value: int, unit: str = "") -> str:
    """A number with four digits: 138.4M."""
    exponent = 0 if value < 1000 else min(4, int(math.log10(float(f"{value:.3e}"))) // 3)
    digits = f"{value / 1000**exponent:.4g}" if exponent == 0 else f"{value / 1000**exponent:#.4g}"
    return digits.rstrip(".") + ("", "K", "M", "G", "T")[exponent] + unit


def listed(names: Sequence[str], most: int = 4) -> str:
    """Names in a row, the first `most` of them: `a, b, … 3 more`."""
    return ", ".join([*names[:most], *([f"… {len(names) - most} more"] if len(names) > most else [])])


def counted(number: int, noun: str) -> str:
    """`1 layer`, `2 layers`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def points(value: float) -> str:
    """A difference of percentages: 1 point, 0.5 points."""
    return f"{value:g} point{'s' * (value != 1)}"
