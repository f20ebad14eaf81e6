"""Which chains are measured for a method on a layer, the most telling ones first."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from typing import Any

from cnncompress.chains.plan_json import stage_to_json
from cnncompress.chains.spec import Call, Chain, Rank
from cnncompress.decompositions import Decomposition
from cnncompress.latency.chains import Job
from cnncompress.latency.curves import anchor_ranks, choose_probe, padded_jobs, regrouped_jobs, structure

Levels = list[list[Job]]


@dataclass(frozen=True, eq=False)
class Wanted:
    """A method for a layer, at any of some ranks; its chains have a bias, which takes next to no time."""

    call: Call
    method: Decomposition
    ranks: Sequence[Rank]

    @property
    def key(self) -> Any:
        """What the times depend on."""
        return self.call.spec, self.call.sizes, self.method.name, json.dumps(self.method.settings, sort_keys=True)

    def chain(self, rank: Rank) -> Chain:
        """The chain at a rank."""
        return self.method.stages(self.call.spec.replace(bias=True), rank)

    def structure(self, rank: Rank) -> Rank:
        """What the chain at a rank has in common with others that differ in width only."""
        return structure(rank, self.method.rank_names)

    @cached_property
    def anchors(self) -> dict[Rank, list[list[Job]]]:
        """By structure, ascending, each rank that may be measured: its chain as it is and in other ways."""
        full, by_structure = self.method.full_rank(self.call.spec), dict[Rank, list[list[Job]]]()
        near = {near for rank in self.ranks for near in anchor_ranks(rank, full, self.method.rank_names)}
        for rank in sorted(near):
            by_structure.setdefault(self.structure(rank), []).append(regrouped_jobs(self.call.spec, self.chain(rank)))
        return by_structure

    @cached_property
    def probe(self) -> tuple[Rank, Chain] | None:
        """The chain of odd width that is measured, and its structure."""
        return choose_probe([(self.structure(rank), self.chain(rank)) for rank in self.ranks])

    @cached_property
    def levels(self) -> Levels:
        """The chains from coarse to fine: those at both ends of the ranks and the probe, then always halfway."""
        levels: Levels = [padded_jobs(self.probe[1])] if self.probe else []
        for ranks in self.anchors.values():
            for k, level in enumerate(halved(ranks)):
                levels += [[]] * (k == len(levels))
                levels[k] = [*levels[k], *chain.from_iterable(level)]
        return levels


def halved(items: Sequence[Any]) -> list[list[Any]]:
    """The first and the last item, then those in the middle of what lies between known ones, level by level."""
    if not items:
        return []
    known, levels = sorted({0, len(items) - 1}), [[items[i] for i in sorted({0, len(items) - 1})]]
    while len(known) < len(items):
        new = [(a + b) // 2 for a, b in pairwise(known) if b - a > 1]
        levels.append([items[i] for i in new])
        known = sorted([*known, *new])
    return levels


def affordable(wanted: Sequence[Wanted], known: Mapping[str, float] | Collection[str], number: float) -> list[Job]:
    """The chains that are not `known` of as many levels as have `number` of them; of the first level in any case."""
    depth, chosen = max((len(one.levels) for one in wanted), default=0), dict[Job, None]()
    for k in range(depth):
        level = [job for one in wanted for jobs in one.levels[k : k + 1] for job in jobs if job_key(job) not in known]
        more = chosen | dict.fromkeys(level)
        if k and len(more) > number:
            break
        chosen = more
    return list(chosen)


def job_key(job: Job) -> str:
    """A chain and its lowering as a short text."""
    return json.dumps([job.lowering, *(list(stage_to_json(stage).values()) for stage in job.chain)])
