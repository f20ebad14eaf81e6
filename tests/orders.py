"""Order among floats whose last bits depend on the processor, the threads and the versions of libraries."""

from collections.abc import Iterable
from itertools import pairwise


def never_rises(values: Iterable[float], slack: float = 1e-9) -> bool:
    """Whether no value is above the one before it by more than rounding, which is `slack` times the first."""
    values = [float(v) for v in values]
    return all(after <= before + slack * abs(values[0]) for before, after in pairwise(values))
