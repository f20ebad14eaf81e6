"""Numbers in words."""

from __future__ import annotations

import math


def human(value: int, unit: str = "") -> str:
    """A number with four digits: 138.4M."""
    exponent = 0 if value < 1000 else min(4, int(math.log10(float(f"{value:.3e}"))) // 3)
    digits = f"{value / 1000**exponent:.4g}" if exponent == 0 else f"{value / 1000**exponent:#.4g}"
    return digits.rstrip(".") + ("", "K", "M", "G", "T")[exponent] + unit


def counted(number: int, noun: str) -> str:
    """`1 layer`, `2 layers`."""
    return f"{number} {noun}{'s' * (number != 1)}"
