"""Cells that several tables have: shares."""

from __future__ import annotations

NONE = "–"


def divide(after: float, before: float) -> float | None:
    """A ratio, None where there is nothing to divide by."""
    return after / before if before else None


def share(ratio: float) -> str:
    """A ratio in two digits."""
    return f"{ratio:.2f}×" if ratio >= 0.1 else f"{ratio:.2g}×"


def with_share(text: str, ratio: float | None, between: str = " ") -> str:
    """A text and, after `between`, a ratio where there is one."""
    return text if ratio is None else f"{text}{between}{share(ratio)}"
