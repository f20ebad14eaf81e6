"""The steps of a cascade: what each decomposed, and the accuracy before, after that, and after fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cnncompress.text import plain


@dataclass(frozen=True)
class StepRow:
    """One step of a cascade: top-1 in percent on `images` images, and the epochs that were trained.

    `layers` are its layers, `what` says what they became.
    """

    step: int
    layers: tuple[str, ...]
    what: str
    before: float
    decomposed: float
    tuned: float
    epochs: int
    images: int

    def to_json(self) -> dict[str, Any]:
        """The values as a report has them."""
        return {**vars(self), "layers": list(self.layers)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> StepRow:
        """Of the values that `to_json` gave."""
        return cls(**{**values, "layers": tuple(values["layers"])})


def step_table(rows: Sequence[StepRow]) -> tuple[list[str], list[list[str]], str]:
    """Headers, cells, and the alignment of the columns."""
    headers = ["cascade", "decomposed layers", "top-1 % before", "decomposed", "fine-tuned", "epochs"]
    shares = [[f"{value:.2f}" for value in (row.before, row.decomposed, row.tuned)] for row in rows]
    cells = [[str(r.step), plain(r.what), *share, str(r.epochs)] for r, share in zip(rows, shares, strict=True)]
    return headers, cells, "rlrrrr"
