"""Statistics of a layer over calibration images."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(repr=False)
class LayerStatistics:
    """Statistics of one layer with g groups and n = C/g·kh·kw inputs a position.

    The tensors are float32 on the CPU. What was not asked for is None; `mean` is then zero and `rows` 0.
    The order of the n inputs is (channel, y, x), as in `weight.flatten(1)`.
    """

    images: int
    rows: int  # input positions that were sampled; below n the moment is singular
    mean: Float[Tensor, "g n"]  # of the inputs
    moment: Float[Tensor, "g n n"] | None = None  # centred second moment of the inputs
    # centred inputs [rows, g·n], in place of the moment where n is very large
    samples: Float[Tensor, "rows inputs"] | None = None
    # mean over images of Σ over positions of ggᵀ, g = d loss / d output
    gradient: Float[Tensor, "f f"] | None = None
    # mean square of the per-image gradients toward wrong classes
    sensitivity: Float[Tensor, "f c kh kw"] | None = None
    # as how many independent rows the moment counts, as those of one image are alike; None is all of them
    independent: int | None = None

    @property
    def counted(self) -> int:
        """The rows as independent ones."""
        return self.rows if self.independent is None else self.independent

    def __repr__(self) -> str:
        known = [f.name for f in dataclasses.fields(self)[2:-1] if getattr(self, f.name) is not None]
        return f"<LayerStatistics of {self.images} images, {self.rows} rows: {', '.join(known)}>"
