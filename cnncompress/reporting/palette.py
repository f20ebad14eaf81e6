"""The colours of pages, for light and dark, and how well they are told from what is behind them."""

from __future__ import annotations

LIGHT = {
    "ground": "#ffffff",
    "panel": "#f3f5f7",
    "text": "#1b1f23",
    "muted": "#525c66",
    "line": "#6b7680",
    "warn": "#8f3400",
    "c0": "#0b5cad",
    "c1": "#9a4200",
    "c2": "#1b6e3c",
    "c3": "#7a3aa8",
    "c4": "#a8231c",
    "c5": "#00656a",
}
DARK = {
    "ground": "#14171a",
    "panel": "#1f2429",
    "text": "#eef1f4",
    "muted": "#b0bac4",
    "line": "#98a3ad",
    "warn": "#ffb98a",
    "c0": "#80bbff",
    "c1": "#ffb074",
    "c2": "#7dd69b",
    "c3": "#d3a6ff",
    "c4": "#ff9c94",
    "c5": "#6fd6dc",
}
SERIES = 6  # colours c0 to c5 of data
BEHIND = ("ground", "panel")


def luminance(colour: str) -> float:
    """The relative luminance of `#rrggbb` in [0, 1] (WCAG 2.2)."""
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours, 1 to 21 (WCAG 2.2)."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)
