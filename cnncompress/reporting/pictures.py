"""What a page shows of a network's weights, as plain values: spectra of layers, filters of the first one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Kernels = Sequence[Sequence[Sequence[Sequence[float]]]]  # [F, C, kh, kw]


@dataclass(frozen=True)
class Spectrum:
    """The singular values of a layer that a chain stands in for, in the matrix that its method truncates.

    `values` are pairs of an index, from 1 on, and a value as a share of the largest. `rank` is the one that was
    chosen, of `full`, and `energy` its share of the squared values; None of a method that truncates no matrix.
    """

    layer: str
    method: str
    ranks: str
    values: tuple[tuple[int, float], ...]
    full: int
    rank: int | None = None
    energy: float | None = None


@dataclass(frozen=True)
class Filters:
    """The kernels [F, C, kh, kw] of the first layer, C one or three, in the original and as it is now.

    `now` is None where no one kernel does the same. `lines` are the shares of the squared weights that a line through
    the origin of the colour space holds, the mean over filters, in the original and now; None of one channel.
    """

    layer: str
    before: Kernels
    now: Kernels | None = None
    lines: tuple[float, float] | None = None


@dataclass(frozen=True)
class Pictures:
    """What is shown of the weights of a run; `missing` says why there is nothing."""

    spectra: tuple[Spectrum, ...] = ()
    filters: Filters | None = None
    missing: str = ""
