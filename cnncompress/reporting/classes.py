"""The classes that a network answers worse than its original, and what it takes their images for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cnncompress.reporting.accuracy import judged
from cnncompress.reporting.page import Section, Table


@dataclass(frozen=True)
class ClassRow:
    """A class with its number of images, and the top-1 of both networks on them in percent.

    `error` is the standard error of the difference, in points, if both networks were alike: the root of the number of
    images that one of them alone is right on, as a share of the images (McNemar 1947).
    """

    name: str
    images: int
    before: float
    after: float
    error: float


@dataclass(frozen=True)
class Confusion:
    """The images of a class that are taken for another: how many by the original, how many now."""

    name: str
    taken_for: str
    before: int
    after: int


@dataclass(frozen=True)
class ClassChanges:
    """What changed in `classes` classes between the original and `network`: those that lost most images first."""

    network: str
    classes: int
    lost: tuple[ClassRow, ...] = ()
    confused: tuple[Confusion, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The values as a report stores them."""
        return dataclasses.asdict(self) | {
            "lost": [dataclasses.asdict(row) for row in self.lost],
            "confused": [dataclasses.asdict(row) for row in self.confused],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ClassChanges:
        """Of checked values."""
        lost = tuple(ClassRow(**row) for row in values.get("lost", ()))
        confused = tuple(Confusion(**row) for row in values.get("confused", ()))
        return cls(values["network"], values["classes"], lost, confused)


def class_section(found: ClassChanges) -> Section:
    """The tables of one network."""
    text = f"{found.classes} classes were compared; of many, some change by two standard errors by chance."
    cells = [[row.name, str(row.images), f"{row.before:.1f}", f"{row.after:.1f}", _change(row)] for row in found.lost]
    headers = ["class", "images", "top-1 % before", "after", "change"]
    lost = Table(f"Classes that lost most images, {found.network}", headers, cells, ["", "", "", "", "l"])
    cells = [[row.name, row.taken_for, str(row.before), str(row.after)] for row in found.confused]
    caption = f"Confusions that grew most, in images, {found.network}"
    grown = Table(caption, ["images of", "taken for", "before", "now"], cells, ["", "l", "", ""])
    tables = [table for table in (lost, grown) if table.rows]
    return Section(f"Classes, {found.network}", text if tables else "No class lost an image.", tables=tables)


def _change(row: ClassRow) -> str:
    return judged(row.after - row.before, row.error, digits=1)
