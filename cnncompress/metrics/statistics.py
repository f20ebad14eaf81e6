"""What calibration images tell about a layer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(repr=False)
class LayerStatistics:
    """What calibration images tell about one layer with g groups and n = C/g·kh·kw inputs a position.

    The tensors are float32 on the CPU. What was not asked for is None; `mean` is then zero and `rows` 0.
    The order of the n inputs is (channel, y, x), as in `weight.flatten(1)`.
    """

    images: int
    rows: int  # input positions that were sampled; below n the moment is singular
    mean: Tensor  # [g, n], of the inputs
    moment: Tensor | None = None  # [g, n, n], centred second moment of the inputs
    samples: Tensor | None = None  # [rows, g·n], centred inputs, in place of the moment where n is very large
    gradient: Tensor | None = None  # [F, F], mean over images of Σ over positions of ggᵀ, g = d loss / d output
    sensitivity: Tensor | None = None  # [F, C/g, kh, kw], mean square of the per-image gradients toward wrong classes

    def __repr__(self) -> str:
        known = [f.name for f in dataclasses.fields(self)[2:] if getattr(self, f.name) is not None]
        return f"<LayerStatistics of {self.images} images, {self.rows} rows: {', '.join(known)}>"
