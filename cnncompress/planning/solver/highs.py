"""The multiple-choice knapsack as HiGHS sees it: the prices of its linear relaxation, and branch and bound.

Candidates stand in a row: `error` [n], `cost` [n, limits] in shares of the limits, `layer` [n] from 0 on, ascending.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

SCALE = 1e3  # HiGHS is right to about 1e-6 in absolute terms: limits and errors are scaled up to this

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]


def prices(error: Floats, cost: Floats, layer: Indices) -> Floats:
    """The price of each limit, in errors, at the optimum of the relaxation; zeros if it cannot be solved."""
    limits = cost.shape[1]
    if not limits:
        return np.zeros(0)
    one = _one_of_each(layer)
    relaxed = linprog(error, cost.T, np.ones(limits), one, np.ones(one.shape[0]), bounds=(0, None), method="highs")
    return np.maximum(-relaxed.ineqlin.marginals, 0) if relaxed.status == 0 else np.zeros(limits)


def branch_and_bound(
    error: Floats, cost: Floats, layer: Indices, seconds: float
) -> tuple[Floats | None, float | None, bool]:
    """The selection (1 for chosen candidates; None if there is none), a lower bound, and if the search was complete.

    Differences in the error that matter should be about 1.
    """
    with _silence():
        solved = milp(
            SCALE * error,
            integrality=np.ones(len(error)),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(_one_of_each(layer), 1, 1),
                LinearConstraint(SCALE * cost.T, -np.inf, SCALE),
            ],
            options={"time_limit": seconds, "mip_rel_gap": 0},
        )
    bound = None if solved.mip_dual_bound is None else solved.mip_dual_bound / SCALE
    return solved.x, bound, solved.status in (0, 2)  # optimal, infeasible


def _one_of_each(layer: Indices) -> sparse.csr_matrix:
    return sparse.csr_matrix((np.ones(len(layer)), (layer, np.arange(len(layer)))))


@contextmanager
def _silence() -> Iterator[None]:
    """Keep what C code prints off the standard output: HiGHS 1.12 has a debugging line that no option turns off."""
    try:
        flush = ctypes.CDLL(None).fflush  # C's buffer is not Python's
        flush(None)
        kept = os.dup(1)
    except (AttributeError, OSError, TypeError):  # no such C library (Windows), or no standard output
        yield
        return
    if sys.stdout is not None:
        sys.stdout.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        flush(None)
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
