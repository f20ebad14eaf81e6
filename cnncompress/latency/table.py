"""Milliseconds of layers and of the chains that could replace them: measured once, kept on disk."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from cnncompress.chains.plan_json import stage_to_json
from cnncompress.chains.spec import Call, Chain, ConvSpec, Pair, Rank, chain_params
from cnncompress.decompositions import Decomposition
from cnncompress.latency.chains import Job, measure
from cnncompress.latency.curves import Curves, Timed, anchor_ranks, choose_probe, padded_jobs, regrouped_jobs, structure
from cnncompress.latency.machine import cache_folder, identity
from cnncompress.latency.setting import TimingSetting
from cnncompress.latency.store import Store

BUSY = 1.2  # where a layer takes so many times as long as it did, its machine has other work
TRIES = 3  # measurements until it has none; later ones are not kept
TOGETHER = 2**27  # weights that are in memory at once, beside those of the layer


class LatencyTable:
    """Times of layers and chains in one setting. Each chain is measured in turns with the layer it would replace.

    `cache` is the folder where times are kept, None for none. What is damaged there is measured again.
    """

    def __init__(self, setting: TimingSetting, cache: Path | str | None = "") -> None:
        self.setting = setting
        self._cache = cache_folder() if cache == "" else Path(cache) if cache is not None else None
        self.identity = identity(setting)
        self._stores: dict[tuple[ConvSpec, Pair], Store] = {}
        self._factor = 1.0

    def settle(self, calls: Mapping[str, Call], within: Mapping[str, float]) -> None:
        """Scale all times so that layers take together what they take `within` their network, milliseconds by name.

        `layer_latencies` measures those. Alone, a layer finds its input in a nearer cache and its output in
        memory that was in use before, which makes it some percent faster; its chains too.
        """
        self._factor = 1.0
        names = [name for name in calls if name in within]
        alone = sum(self.dense(calls[name]) for name in names)
        self._factor = sum(within[name] for name in names) / alone if alone else 1.0

    def dense(self, call: Call) -> float:
        """Milliseconds of the layer for a batch, over all its calls in one forward pass."""
        return self._total(call, Job((call.spec,)))

    def chain(self, call: Call, chain: Chain, lowering: str = "") -> float:
        """Milliseconds of this very chain in the layer's place; `chain` is what runs, with the lowering applied."""
        return self._total(call, Job(chain, lowering))

    def chains(self, call: Call, method: Decomposition, ranks: Sequence[Rank], centred: bool) -> list[Timed]:
        """The time of a method's chain at each rank, with the lowering that makes it fastest.

        Measured at ranks that processors like and, where others are asked for, at one of those with and without
        padding; the rest is interpolated. `centred` gives the chains a bias even where the layer has none.
        """
        spec, names = call.spec.replace(bias=call.spec.bias or centred), method.rank_names
        full = method.full_rank(call.spec)
        plain = [(structure(rank, names), method.stages(spec, rank)) for rank in ranks]
        anchors = sorted({near for rank in ranks for near in anchor_ranks(rank, full, names)})
        jobs: dict[Rank, list[Job]] = {}
        for near in anchors:
            jobs.setdefault(structure(near, names), []).extend(regrouped_jobs(spec, method.stages(spec, near)))
        probe = choose_probe(plain)
        extra = padded_jobs(probe[1]) if probe else []
        self._measure(call, [*(job for found in jobs.values() for job in found), *extra])
        curves = Curves(call, jobs, probe, lambda job: self._total(call, job))
        return [curves(kind, chain) for kind, chain in plain]

    def _total(self, call: Call, job: Job) -> float:
        self._measure(call, [job])
        key = job_key(job)
        spent = sum(n * self._store(call.spec, size).times[key] for size, n in Counter(call.sizes).items())
        return self._factor * spent

    def _measure(self, call: Call, jobs: Sequence[Job]) -> None:
        """Make sure that the times of these chains at all sizes of a layer are known."""
        own = Job((call.spec,))
        for size in dict.fromkeys(call.sizes):
            store = self._store(call.spec, size)
            missing = [job for job in dict.fromkeys([own, *jobs]) if job_key(job) not in store.times]
            if not missing:
                continue
            for part in by_memory([job for job in missing if job != own]):
                self._measure_beside(own, part, size, store)

    def _measure_beside(self, own: Job, jobs: Sequence[Job], size: Pair, store: Store) -> None:
        """Measure chains in turns with the layer; again where that shows that the machine was busy."""
        known = store.times.get(job_key(own), math.inf)
        tries: list[dict[str, float]] = []
        while len(tries) < TRIES and not (tries and tries[-1][job_key(own)] <= BUSY * known):
            tries.append(dict(zip(map(job_key, [own, *jobs]), measure([own, *jobs], size, self.setting), strict=True)))
        found = min(tries, key=lambda times: times[job_key(own)])
        quiet = found[job_key(own)] <= BUSY * known
        store.add(found | {job_key(own): min(known, found[job_key(own)])}, keep=quiet)

    def _store(self, spec: ConvSpec, size: Pair) -> Store:
        if (spec, size) not in self._stores:
            layer = {"layer": stage_to_json(spec), "size": list(size)}
            self._stores[spec, size] = Store(self._cache, self.identity | layer)
        return self._stores[spec, size]


def by_memory(jobs: Sequence[Job]) -> list[list[Job]]:
    """The jobs in parts whose weights fit the memory together; one empty part where there are none."""
    parts: list[list[Job]] = [[]]
    held = 0
    for job in jobs:
        weights = chain_params(job.chain)
        if parts[-1] and held + weights > TOGETHER:
            parts.append([])
            held = 0
        parts[-1].append(job)
        held += weights
    return parts


def job_key(job: Job) -> str:
    """A chain and its lowering as a short text."""
    return json.dumps([job.lowering, *(list(stage_to_json(stage).values()) for stage in job.chain)])
