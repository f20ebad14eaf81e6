"""Changes of accuracy in words, with their paired standard errors."""

from __future__ import annotations

from cnncompress.reporting.cells import NONE

NOISE = 2.0  # standard errors within which a difference may well be none


def is_noise(change: float, error: float | None) -> bool:
    """True where a difference is less than two of its standard errors, or is none at all."""
    return change == 0 or (error is not None and abs(change) < NOISE * error)


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, a minus where there is one, and none where it is rounded to nothing."""
    text = f"{abs(value):.{digits}f}"
    sign = "" if float(text) == 0 else "−" if value < 0 else "+"
    return sign + text


def change_words(change: float | None, error: float | None, digits: int = 2) -> str:
    """`−0.32 ± 0.41`, without the standard error where it is not known; a dash where there is no change to tell."""
    if change is None:
        return NONE
    return signed(change, digits) + ("" if error is None else f" ± {error:.{digits}f}")


def judged(change: float, error: float | None, digits: int = 2) -> str:
    """As `change_words` in points, and that it is within noise where it is, or that the standard error is not known."""
    told = ", within noise" if is_noise(change, error) else ""
    return change_words(change, error, digits) + " points" + (", standard error not known" if error is None else told)
