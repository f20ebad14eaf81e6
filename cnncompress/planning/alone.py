"""What one change of a network alone does to its answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from cnncompress.fitting import Fitting, fit_layer
from cnncompress.network.copying import clone
from cnncompress.network.selection import select
from cnncompress.network.swap import Places
from cnncompress.network.widths import narrowed_to
from cnncompress.planning.candidates import Candidate, Layer, layer_plan
from cnncompress.planning.collection import Candidates
from cnncompress.planning.cuts import Cut

SIMILAR_FACTOR = 2.0  # errors within this factor raise the divergence in proportion


@dataclass(frozen=True)
class Change:
    """One rank of a family of a layer, or, for a cut, one count of channels."""

    item: Layer | Cut
    index: int
    family: int = -1

    @classmethod
    def of(cls, layer: Layer, candidate: Candidate) -> Change:
        """The chain of a candidate for a layer, which it has."""
        return cls(layer, candidate.index, candidate.family)

    @property
    def error(self) -> float:
        """As it was predicted at first."""
        errors = self.item.errors if isinstance(self.item, Cut) else self.item.families[self.family].errors
        return float(errors[self.index])


class Alone:
    """Measures the divergence of the answers with single changes, in nats; one that is like an earlier one is not."""

    def __init__(self, candidates: Candidates) -> None:
        self.all = candidates
        self.last: dict[str, tuple[int, float, float]] = {}  # by item: family, error, divergence last measured

    def divergences(self, changes: Mapping[str, Change]) -> dict[str, float]:
        """Those of some changes, each put into the network alone.

        A change of the same family and of a similar error as one that was measured before is taken from that.
        """
        small, nats = Places(clone(self.all.subject.network)), {}
        for name, change in self.all.bar(changes.items(), "calibrate"):
            error = change.error
            family, known, divergence = self.last.get(name, (-2, 0.0, 0.0))
            if family != change.family or not known / SIMILAR_FACTOR <= error <= known * SIMILAR_FACTOR:
                known, divergence = error, self._measured(small, name, change)
                self.last[name] = (change.family, known, divergence)
            nats[name] = divergence * (error / known if known else 1.0)
        return nats

    def _measured(self, small: Places, name: str, change: Change) -> float:
        """That of a change of a copy of the network, which stays as it is; measured once."""
        key, measured = (name, change.family, change.index), self.all.measured
        if key not in measured:
            item = change.item
            measured[key] = (
                self._cut(small.model, item, change) if isinstance(item, Cut) else self._chain(small, item, change)
            )
        return measured[key]

    def _cut(self, small: nn.Module, cut: Cut, change: Change) -> float:
        guide, calls = self.all.guide, self.all.subject.calls
        plan = narrowed_to(calls, {cut.group: cut.counts[change.index]}, guide.centred)
        plan.metric = guide.metric
        narrower = select(small, plan, guide.statistics, {cut.group: cut.order}).network
        assert guide.answers is not None
        return guide.answers.divergence(narrower)

    def _chain(self, small: Places, layer: Layer, change: Change) -> float:
        name, family, guide = layer.name, layer.families[change.family], self.all.guide
        plan = layer_plan(layer.call, family.method, family.ranks[change.index], layer.centred)
        quick, module = replace(plan, options=family.method.quick().settings), small.model.get_submodule(name)
        how = Fitting(guide.metric, guide.statistics.get(name))
        assert guide.answers is not None
        with small.swapped(name, fit_layer(name, module, quick, how).chain):
            return guide.answers.divergence(small.model)
