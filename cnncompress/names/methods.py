"""The registered decompositions as their files describe them, read without importing torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cnncompress.errors import unknown
from cnncompress.names.classes import registered


@dataclass
class Entry:
    """A decomposition: name, ranks, options with their defaults, chain in words, source, options that act as ranks."""

    name: str = ""
    source: str = ""
    rank_names: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    chain: str = ""
    sizing: tuple[str, ...] = ()


SELECT = "select"
STRUCTURES = {
    SELECT: Entry(
        SELECT,
        "Reeves 1999; Hassibi and Stork 1993",
        ("K",),
        {},
        "the layer with K of its input channels; the layers before it compute no others",
    )
}  # what is no chain in the place of one layer


def catalogue() -> dict[str, Entry]:
    """Every decomposition by its name."""
    classes = registered("decompositions", ("name", "source", "rank_names", "options", "sizing"))
    return {name: Entry(**one.values, chain=one.line) for name, one in classes.items()}


def check_method(name: str) -> None:
    """UsageError for a method that is not registered."""
    known = catalogue() | STRUCTURES
    if name not in {"auto", *known}:
        raise unknown("method", name, known, also=["auto"])
