"""Errors a user can cause. Each message is one line: what, where, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CompressError(Exception):
    """Something that could not be done; the command line prints it as one line and exits with 1."""


class UsageError(CompressError):
    """A request that makes no sense (unknown name, rank out of range); exit code 2."""


class UnsupportedLayerError(CompressError):
    """A layer, or a chain of stages, that cannot be expressed without changing its meaning."""


class DataError(CompressError):
    """Images or labels that cannot be used with the network."""


class RunError(CompressError):
    """A run directory that is missing, truncated, of a newer version, or already there."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the known name closest to `name`, or an empty string."""
    folded = {k.casefold(): k for k in known}
    close = difflib.get_close_matches(name.casefold(), folded, n=1)
    return f"; did you mean '{folded[close[0]]}'?" if close else ""
