"""Notes beside the numbers of a report: each has a source, and all are collected in one place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

SOURCES = (
    "plan",
    "network",
    "calibration",
    "fit",
    "search",
    "answers",
    "latency",
    "prediction",
    "earlier run",
    "input",
    "outputs",
)  # in the order in which their notes are read


@dataclass(frozen=True)
class Note:
    """A sentence on how a network was made or measured, and what part of the work says it, one of `SOURCES`."""

    source: str
    text: str


def notes(source: str, *texts: str) -> tuple[Note, ...]:
    """Notes of one source."""
    return tuple(Note(source, text) for text in texts)


def collect(*groups: Iterable[Note]) -> list[str]:
    """The texts of all notes, each once, in the order of their sources."""
    ordered = sorted((n for g in groups for n in g), key=lambda n: SOURCES.index(n.source))
    return list(dict.fromkeys(note.text for note in ordered))
