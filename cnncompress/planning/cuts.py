"""How many channels of each group may be left, with the error of every number."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cnncompress.metrics import get_metric
from cnncompress.metrics.statistics import LayerStatistics
from cnncompress.network.channels import Group
from cnncompress.network.selection import elimination
from cnncompress.network.subject import Subject
from cnncompress.planning.selecting import unfit

GRID_COUNTS = 16  # of a group
BLOCK_CHANNELS = 8  # that processors compute at once
CHANNELS_FOR_BLOCKS = 64  # of a group that is left in steps of `BLOCK_CHANNELS`; others are left in steps of one


@dataclass(eq=False)
class Cut:
    """A group of channels: the numbers of them that may be left, ascending, the last of which is all; and the errors.

    Errors are in nats where the metric's are, otherwise squared and relative to the layers that take the channels.
    """

    group: Group
    counts: list[int]
    errors: Tensor  # float64 [counts]
    order: Tensor  # int64 [C], of the channels by their use
    chosen: list[int] = field(default_factory=list)  # the counts that the solver is to choose from
    factor: float = 1.0  # by which its errors were found to be too small

    @property
    def key(self) -> str:
        """A name that no layer has."""
        return f"{self.group.name}: channels"

    @property
    def whole(self) -> int:
        """The place of all channels among the counts."""
        return len(self.counts) - 1

    def error(self, index: int) -> float:
        """The error with the count at a place."""
        return self.factor * float(self.errors[index])

    def spread(self) -> None:
        """Let the solver choose among counts that are spread evenly."""
        places = torch.linspace(0, self.whole, min(GRID_COUNTS, len(self.counts)))
        self.chosen = sorted({round(place) for place in places.tolist()})

    def near(self, index: int) -> None:
        """Let the solver choose among the counts between the neighbours of `index` in the present choice, and all."""
        place = self.chosen.index(index)
        low, high = self.chosen[max(0, place - 1)], self.chosen[min(len(self.chosen) - 1, place + 1)]
        step = max(1, (high - low) // GRID_COUNTS)
        self.chosen = sorted({*range(low, high + 1, step), index, self.whole})


def make_cuts(
    subject: Subject,
    groups: Collection[Group],
    names: Collection[str],
    metric: str,
    statistics: Mapping[str, LayerStatistics],
    multiple: int | None,
) -> list[Cut]:
    """The cuts of the groups whose layers are all among `names`; counts are multiples of `multiple`."""
    cuts = []
    for group in groups:
        if group.channels < 2 or unfit(group, names, subject) is not None:
            continue
        order, errors = elimination(group, subject.network, metric, statistics, {})
        scale = 0.5 if get_metric(metric).nats else len(group.takers) / (float(errors[0]) or 1.0)
        step = multiple or (BLOCK_CHANNELS if group.channels >= CHANNELS_FOR_BLOCKS else 1)
        counts = [*range(step, group.channels, step), group.channels]
        cuts.append(Cut(group, counts, scale * errors[counts].clamp_min(0), order))
    return cuts
