"""The chains that any plan of a network may ask the times of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cnncompress.chains.spec import Call, Rank
from cnncompress.decompositions import Decomposition
from cnncompress.latency.curves import GRID, are_widths
from cnncompress.latency.wanted import Wanted
from cnncompress.planning.candidates import is_cheaper, layer_plan, methods_of, ranks_of
from cnncompress.planning.rules import Choice, choose_method


def wanted_of(calls: Mapping[str, Call], choice: Choice) -> list[Wanted]:
    """The chains of all methods of a choice for all layers, at ranks from which those of the others follow."""
    wanted = []
    for call in calls.values():
        for text in methods_of(choice, call.spec) if not call.kept else ():
            method, _ = choose_method(text, call.spec)
            if method.refuse(call.spec) is None and (ranks := sorted(set(_ranks(call, method)))):
                wanted.append(Wanted(call, method, ranks))
    return wanted


def _ranks(call: Call, method: Decomposition) -> Iterator[Rank]:
    """Those of the grid that make the layer cheaper, with the next one, and an odd one in the middle."""
    full = method.full_rank(call.spec)
    if len(full) > 1 or not all(are_widths(full, method.rank_names)):
        yield from (rank for rank in ranks_of(method, call.spec, 1, False) if _cheaper(call, method, rank))
        return
    grid = sorted({min(k, full[0]) for k in GRID})
    cheaper = sum(_cheaper(call, method, (k,)) for k in grid)
    if _cheaper(call, method, (1,)):
        odd = min(grid[cheaper // 2] + 1, full[0])
        yield from ((k,) for k in [*grid[: cheaper + 1], odd])


def _cheaper(call: Call, method: Decomposition, rank: Rank) -> bool:
    return is_cheaper(call, layer_plan(call, method, rank, True))
