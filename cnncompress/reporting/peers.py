"""What other tools or papers reached, of a CSV file, beside the networks of a report."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path

from cnncompress.errors import UsageError
from cnncompress.files.reading import MalformedError, read_text

BYTES = 2**20
NEEDED = ("name", "macs", "top1")


@dataclass(frozen=True)
class Peer:
    """Another network: MACs of one image, or a share of the original's up to 1, top-1 in percent, milliseconds."""

    name: str
    macs: float
    top1: float
    ms: float | None = None

    def macs_beside(self, original: int) -> float:
        """Its MACs beside an original of so many."""
        return self.macs * original if self.macs <= 1 else self.macs


def read_peers(path: Path) -> list[Peer]:
    """The lines of a CSV file with the columns name, macs, top1 and, if it likes, ms; UsageError in one line."""
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path, BYTES)), strict=True))
    except OSError as error:
        raise UsageError(f"cannot read the peers {path}: {error.strerror}") from None
    except (MalformedError, csv.Error) as error:
        raise UsageError(f"{path} is no CSV file of peers: it {error}") from None
    if not rows or (missing := [name for name in NEEDED if name not in rows[0]]):
        told = f"lacks the column {missing[0]}" if rows else "has no lines"
        raise UsageError(f"{path} {told}; give a first line name,macs,top1 (and ms) and a line for each network")
    return [_peer(f"{path}, line {number}", row) for number, row in enumerate(rows, 2)]


def _peer(where: str, row: dict[str, str | None]) -> Peer:
    ms = row.get("ms") or None
    macs, top1 = _number(where, "macs", row["macs"]), _number(where, "top1", row["top1"])
    if top1 > 100:
        raise UsageError(f"{where}: top1 is {top1:g}; give percent")
    return Peer(row["name"] or "", macs, top1, None if ms is None else _number(where, "ms", ms))


def _number(where: str, name: str, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"{where}: {name} is {text!r}; give a positive number")
    return value
