"""Milliseconds of layers and of the chains that could replace them: measured once, kept on disk."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cnncompress.chains.plan_json import stage_to_json
from cnncompress.chains.spec import Call, Chain, ConvSpec, Pair, Rank, chain_params
from cnncompress.decompositions import Decomposition
from cnncompress.latency.chains import Job, measure
from cnncompress.latency.curves import Curves, Timed
from cnncompress.latency.machine import cache_folder, identity
from cnncompress.latency.setting import TimingSetting
from cnncompress.latency.store import Store
from cnncompress.latency.wanted import Wanted, affordable, job_key

Shape = tuple[ConvSpec, Pair]

BUSY_FACTOR = 1.2  # where a layer takes so many times as long as it did, its machine has other work
TRIES = 3  # measurements until it has none; later ones are not kept
WEIGHTS_TOGETHER = 2**27  # weights that are in memory at once, beside those of the layer
EXPECTED = (10, 0.4)  # so many chains take so many seconds, as far as is known before any was measured


class LatencyTable:
    """Times of layers and chains in one setting. Each chain is measured in turns with the layer it would replace.

    `cache` is the folder where times are kept, None for none. What is damaged there is measured again. `where` says
    what the times depend on, None for this machine. The layers were `seen` within the network where their share of its
    time is known.
    """

    def __init__(
        self, setting: TimingSetting, cache: Path | str | None = "", where: Mapping[str, Any] | None = None
    ) -> None:
        self.setting = setting
        self._cache = cache_folder() if cache == "" else Path(cache) if cache is not None else None
        self.identity = identity(setting) if where is None else dict(where)
        self.stores: dict[Shape, Store] = {}
        self._curves: dict[Any, Curves] = {}
        self._timed: dict[tuple[Any, Rank], Timed] = {}  # what curves that stay have told
        self.factor = 1.0
        self.seen = True

    def settle(self, calls: Mapping[str, Call], within: Mapping[str, float], seen: bool = True) -> None:
        """Scale all times so that layers take together what they take `within` their network, milliseconds by name.

        `layer_latencies` measures those. Alone, a layer finds its input in a nearer cache and its output in
        memory that was in use before, which makes it some percent faster; its chains too.
        """
        self.factor, self.seen = 1.0, seen
        names = [name for name in calls if name in within]
        alone = sum(self.dense(calls[name]) for name in names)
        self.factor = sum(within[name] for name in names) / alone if alone else 1.0

    def dense(self, call: Call) -> float:
        """Milliseconds of the layer for a batch, over all its calls in one forward pass."""
        return self._total(call, Job((call.spec,)))

    def chain(self, call: Call, chain: Chain, lowering: str = "") -> float:
        """Milliseconds of this very chain in the layer's place; `chain` is what runs, with the lowering applied."""
        return self._total(call, Job(chain, lowering))

    def learn(self, wanted: Sequence[Wanted], seconds: float = math.inf) -> None:
        """Measure the chains of methods on layers, at as many ranks as some `seconds` hold.

        Layers of one shape are measured once, the largest first and at the most ranks; all at the ends of their ranks.
        """
        shapes: dict[Shape, list[Wanted]] = {}
        new = {one.key: one for one in wanted if one.key not in self._curves}
        for one in new.values():
            for size in dict.fromkeys(one.call.sizes):
                shapes.setdefault((one.call.spec, size), []).append(one)
        weights = {shape: math.sqrt(shape[0].macs(shape[1])) for shape in shapes}
        done, spent = EXPECTED
        start, left = time.perf_counter(), sum(weights.values())
        for shape in sorted(shapes, key=lambda shape: -weights[shape]):
            store, begin = self._store(*shape), time.perf_counter()
            allowed = max(0.0, seconds - (begin - start)) * weights[shape] / left
            jobs = affordable(shapes[shape], store.times, allowed * done / spent)
            self._measure_at(*shape, jobs)
            done, spent, left = done + len(jobs), spent + time.perf_counter() - begin, left - weights[shape]
        self._curves |= {key: self._curves_of(one) for key, one in new.items()}

    def chains(self, call: Call, method: Decomposition, ranks: Sequence[Rank]) -> list[Timed]:
        """The time of a method's chain at each rank, with the lowering that makes it fastest.

        Measured at ranks that processors like and, where others are asked for, at one of those with and without
        padding; the rest is interpolated. Without `learn` before, what is missing for these ranks is measured now.
        """
        wanted = Wanted(call, method, ranks)
        known, key = self._timed, wanted.key
        if (curves := self._curves.get(key)) is None:
            self._measure_all(wanted)
            known, curves = {}, self._curves_of(wanted)
        for rank in ranks:
            if (key, rank) not in known:
                known[key, rank] = curves(wanted.structure(rank), wanted.chain(rank))
        timed = [known[key, rank] for rank in ranks]
        return [replace(one, milliseconds=self.factor * one.milliseconds) for one in timed]

    def _measure_all(self, wanted: Wanted) -> None:
        for size in dict.fromkeys(wanted.call.sizes):
            known = self._store(wanted.call.spec, size).times
            self._measure_at(wanted.call.spec, size, affordable([wanted], known, math.inf))

    def _curves_of(self, wanted: Wanted) -> Curves:
        """Of what has been measured."""
        call = wanted.call
        stores = [self._store(call.spec, size) for size in dict.fromkeys(call.sizes)]
        known = {
            kind: [job for jobs in ranks if all(job_key(jobs[0]) in s.times for s in stores) for job in jobs]
            for kind, ranks in wanted.anchors.items()
        }
        return Curves(call, known, wanted.probe, lambda job: self._alone(call, job))

    def _total(self, call: Call, job: Job) -> float:
        return self.factor * self._alone(call, job)

    def _alone(self, call: Call, job: Job) -> float:
        """Over all calls of a layer, before the times are scaled."""
        total = 0.0
        for size, number in Counter(call.sizes).items():
            self._measure_at(call.spec, size, [job])
            total += number * self._store(call.spec, size).times[job_key(job)]
        return total

    def _measure_at(self, spec: ConvSpec, size: Pair, jobs: Sequence[Job]) -> None:
        """Make sure that the times of these chains and of the layer are known."""
        own, store = Job((spec,)), self._store(spec, size)
        missing = [job for job in dict.fromkeys([own, *jobs]) if job_key(job) not in store.times]
        if missing:
            for part in by_memory([job for job in missing if job != own]):
                self._measure_beside(own, part, size, store)

    def _measure_beside(self, own: Job, jobs: Sequence[Job], size: Pair, store: Store) -> None:
        """Measure chains in turns with the layer; again where that shows that the machine was busy."""
        known = store.times.get(job_key(own), math.inf)
        tries: list[dict[str, float]] = []
        while len(tries) < TRIES and not (tries and tries[-1][job_key(own)] <= BUSY_FACTOR * known):
            tries.append(dict(zip(map(job_key, [own, *jobs]), measure([own, *jobs], size, self.setting), strict=True)))
        least = min(tries, key=lambda times: times[job_key(own)])
        quiet = least[job_key(own)] <= BUSY_FACTOR * known
        store.add(least | {job_key(own): min(known, least[job_key(own)])}, keep=quiet)

    def _store(self, spec: ConvSpec, size: Pair) -> Store:
        if (spec, size) not in self.stores:
            layer = {"layer": stage_to_json(spec), "size": list(size)}
            self.stores[spec, size] = Store(self._cache, self.identity | layer)
        return self.stores[spec, size]


def by_memory(jobs: Sequence[Job]) -> list[list[Job]]:
    """The jobs in parts whose weights fit the memory together; one empty part where there are none."""
    parts: list[list[Job]] = [[]]
    held = 0
    for job in jobs:
        weights = chain_params(job.chain)
        if parts[-1] and held + weights > WEIGHTS_TOGETHER:
            parts.append([])
            held = 0
        parts[-1].append(job)
        held += weights
    return parts
