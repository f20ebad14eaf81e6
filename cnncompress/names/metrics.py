"""The registered metrics as their files describe them, read without importing torch; which ones are the defaults."""

from __future__ import annotations

from dataclasses import dataclass

from cnncompress.errors import unknown
from cnncompress.names.classes import registered

DEFAULT = "frobenius"
GUIDED = "kronecker"  # with a budget or a plan, and images
OF_INPUTS = "data-covariance"  # that statistics are collected for where no metric is named


@dataclass
class Entry:
    """A metric's name, the statistics of images that it needs, its form in words, and its source."""

    name: str = ""
    source: str = ""
    needs: tuple[str, ...] = ()
    form: str = ""


def catalogue() -> dict[str, Entry]:
    """Every metric by its name."""
    classes = registered("metrics", ("name", "source", "needs"))
    return {name: Entry(**one.values, form=one.line) for name, one in classes.items()}


def entry(name: str) -> Entry:
    """A metric by its name; UsageError for one that is not registered."""
    known = catalogue()
    if name not in known:
        raise unknown("metric", name, known)
    return known[name]
