"""The type of a data set, whatever its source."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from cnncompress.data.loading import Images


@dataclass
class Data:
    """Images to evaluate on (`val`), to train on where there are any (`train`), and to test on at the very end.

    `classes` is the number of classes the labels are drawn from; without `labelled` all labels are -1. `fingerprint`
    tells whether two data sets are the same, `flip` whether a mirrored image still shows its class. `parted` is the
    share and the seed by which one set was split into `val` and `train`, None where it came so.
    """

    name: str
    val: Images
    train: Images | None
    classes: int
    fingerprint: str
    test: Images | None = None
    flip: bool = True
    labelled: bool = True
    parted: tuple[float, int] | None = None

    @property
    def skipped(self) -> list[str]:
        """Names of the images that could not be read so far."""
        parts = [part for part in (self.train, self.val, self.test) if part is not None]
        return sorted({name for part in parts for name in part.skipped})


def fingerprint(entries: Iterable[tuple[str, int, int]]) -> str:
    """Sixteen hexadecimal digits of the SHA-256 over `(relative path, bytes, label)`, in any order."""
    digest = hashlib.sha256()
    for entry in sorted(entries):
        digest.update(repr(entry).encode())
    return digest.hexdigest()[:16]
