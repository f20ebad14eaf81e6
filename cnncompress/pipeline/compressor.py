"""From settings to a plan, and from a plan to a compressed network: what is repeated for every budget that is tried."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnncompress.config import DecomposeSettings
from cnncompress.console import Steps
from cnncompress.copying import clone
from cnncompress.correction import decompose_in_order, reconstruct, reestimate
from cnncompress.data import Data, make_loader
from cnncompress.divergence import Answers, to_check
from cnncompress.evaluation import Evaluation, resolve_device
from cnncompress.factored import Provenance, memory_format_of, provenance, to_memory_format, trace
from cnncompress.fitting import decompose
from cnncompress.metrics import CENTRED, check_metric
from cnncompress.pipeline.calibration import Calibration, calibrate, calibration_set
from cnncompress.pipeline.opening import Opened, evaluate_on
from cnncompress.planning import (
    Choice,
    Planner,
    choices_of,
    network_clock,
    plan_by_rank,
    read_plan,
    seeded,
    settled_table,
    with_reasons,
)
from cnncompress.profiling import latency
from cnncompress.spec import Budget, Call, Latency, Plan, Profile, convolutions
from cnncompress.timing import LatencyTable, TimingSetting

VALUES = 2**28  # numbers in the largest activation of the images that a correction looks at: 1 GiB in float32
FORMATS = ("contiguous", "channels_last")
WORTH = 0.97  # of the latency: a smaller gain is no reason to change the memory format


class Compressor:
    """Everything about one network that planning and fitting need, each made when it is first asked for."""

    def __init__(
        self, settings: DecomposeSettings, opened: Opened, data: Data | None, cost: Profile, out: Path, phases: Steps
    ) -> None:
        self.settings, self.opened, self.data, self.out, self.phases = settings, opened, data, out, phases
        self.cost = cost
        self.told = Calibration()
        self.notes: list[str] = []
        check_metric(settings.metric or "frobenius")
        default = Choice(seeded(settings.method, settings.seed), settings.rank)
        rules = {
            pattern: Choice(
                seeded(rule.method or settings.method, settings.seed), default.rank if rule.rank is None else rule.rank
            )
            for pattern, rule in settings.per_layer.items()
        }
        self.calls: Mapping[str, Call] = trace(opened.model, opened.example())
        self.choices, self.reasons = choices_of(
            opened.model, self.calls, default, rules, settings.layers, settings.skip
        )

    @property
    def corrected(self) -> bool:
        """True where outputs are corrected on images, which takes a bias in every chain."""
        return self.settings.correct != "none"

    def plan(self, budget: Budget | None = None) -> Plan:
        """The plan that the settings ask for, or that of another budget, with its statistics at hand."""
        settings = self.settings
        budget = budget or settings.budget
        if budget is not None:
            planner = self.planner
            with self.phases("plan", f"plan within {budget}"):
                found = planner.plan(budget)
        else:
            with self.phases("plan"):
                if settings.plan is not None:
                    found = read_plan(settings.plan, self.calls, self.reasons, self.corrected)
                else:
                    centred = settings.metric in CENTRED or self.corrected
                    found = plan_by_rank(self.choices, self.calls, settings.metric or "frobenius", False, centred)
        found.memory_format = found.memory_format or self.memory_format
        return with_reasons(found, self.reasons, self.calls)

    def fit(self, plan: Plan) -> nn.Module:
        """The compressed network of a plan, corrected as the settings ask for; `notes` then tell what was done."""
        settings, model = self.settings, self.opened.model
        self.notes = []
        if not self.told.statistics:
            self._calibrate(plan.layers)
        statistics = self.told.statistics
        with self.phases("factorize", f"fit {len(plan.layers)} layers"):
            if not self.corrected:
                return self._reconstructed(
                    decompose(
                        model, plan, statistics=statistics, refine=1 if settings.refine is None else settings.refine
                    )
                )
            refit = settings.correct == "refit"
            small = decompose_in_order(
                model,
                plan,
                self.images,
                statistics=statistics,
                refine=settings.refine,
                refit=refit,
                adjust=list(self.choices),
                seed=settings.seed,
            )
            small = small if refit else self._normalised(small)
        return self._reconstructed(small)

    def _normalised(self, small: nn.Module) -> nn.Module:
        """The network with its batch normalisations estimated again, where that brings its answers nearer.

        Not after a refit, which already gives every layer the outputs of the original: it then makes things worse.
        """
        other = reestimate(small, self.images)
        if other is None:
            return small
        before, after = self.answers.divergence(small), self.answers.divergence(other)
        what = f"divergence on calibration images {before:.3g} nats without, {after:.3g} with"
        better = after < before
        self.notes.append(f"batch normalisation {'estimated again' if better else 'left as it was'}: {what}")
        return other if better else small

    def _reconstructed(self, small: nn.Module) -> nn.Module:
        """The network after the gradient steps asked for."""
        if not self.settings.reconstruct:
            return small
        with self.phases("reconstruct", f"reconstruct blocks, {self.settings.reconstruct} gradient steps each"):
            small, notes = reconstruct(
                self.opened.model, small, self.images, self.settings.reconstruct, seed=self.settings.seed
            )
        self.notes += notes
        return small

    def measure(self, model: nn.Module) -> Evaluation | None:
        """Accuracy on the evaluation images, or None without data."""
        with self.phases(
            "evaluate", f"evaluate the {'original' if model is self.opened.model else 'compressed'} network"
        ):
            return evaluate_on(model, self.data, self.settings)

    @property
    def predicts_nats(self) -> bool:
        """True where the errors of a plan are nats."""
        return self.settings.metric == "kronecker" or self.corrected

    def _calibrate(self, layers: Mapping[str, object]) -> None:
        with self.phases("calibrate", f"collect the statistics of {len(layers)} layers"):
            self.told = calibrate(self.settings, self.opened, layers, self.data, self.out)

    @cached_property
    def planner(self) -> Planner:
        """Candidates for every layer that may change."""
        settings, opened = self.settings, self.opened
        self._calibrate(self.choices)
        with self.phases("candidates", f"try methods and ranks on {len(self.choices)} layers"):
            return Planner(
                opened.model,
                opened.example(),
                self.choices,
                self.calls,
                metric=settings.metric or "frobenius",
                statistics=self.told.statistics,
                multiple=settings.multiple or (8 if resolve_device(settings.device).type == "cuda" else None),
                answers=self.answers if self.corrected else None,
                table=self.table,
                original_ms=self.originals[self.memory_format].median if self.table else None,
                reference_ms=self._own_ms if self.table else None,
                clock=self._clock if self.table else None,
            )

    @cached_property
    def _clock(self) -> Callable[[Plan], float]:
        """Tells the milliseconds of the whole network after a plan, in the memory format that the run is to have."""
        clocked = self.opened.model, self.opened.example(), self._own_ms, self.memory_format
        return network_clock(*clocked, **self._timing)

    @cached_property
    def _formatted(self) -> nn.Module:
        """The original in the memory format that the run is to have."""
        return to_memory_format(clone(self.opened.model), self.memory_format)

    @cached_property
    def originals(self) -> dict[str, Latency]:
        """Latency of the original by memory format, its own first, where the budget is one of latency."""
        asked = self.settings.memory_format
        return self._by_format(self.opened.model, [asked] if asked else FORMATS)

    @property
    def _own_ms(self) -> float:
        """Milliseconds of the original in its own memory format."""
        return next(iter(self.originals.values())).median

    def _by_format(self, model: nn.Module, formats: Iterable[str]) -> dict[str, Latency]:
        """Latency of a network in its own memory format, which comes first, and in others."""
        names = dict.fromkeys([memory_format_of(model), *formats])
        return self._latencies({name: to_memory_format(clone(model), name) for name in names})

    def _latencies(self, models: dict[str, nn.Module]) -> dict[str, Latency]:
        with self.phases("latency", "time the networks"):
            return latency(models, self.opened.example(), **self._timing)

    @property
    def _timing(self) -> dict[str, Any]:
        device = str(resolve_device(self.settings.device))
        return {"batch": self.settings.latency_batch, "threads": self.settings.threads, "device": device}

    @cached_property
    def memory_format(self) -> str:
        """The one asked for, or for a budget of latency the one that the original is fastest in; "" for its own."""
        if self.settings.memory_format or not self._by_latency:
            return self.settings.memory_format or ""
        return _best(self.originals)[0]

    @property
    def _by_latency(self) -> bool:
        return self.settings.budget is not None and self.settings.budget.latency is not None

    @cached_property
    def table(self) -> LatencyTable | None:
        """Times of layers and chains, where the budget is one of latency."""
        if not self._by_latency:
            return None
        dtype = str(self.opened.example().dtype).removeprefix("torch.")
        setting = TimingSetting(**self._timing, dtype=dtype, memory_format=self.memory_format)
        with self.phases("latency", "time layers and chains"):
            return settled_table(self._formatted, self.opened.example(), self.calls, setting)

    def in_fastest_format(self, small: nn.Module, plan: Plan) -> nn.Module:
        """A network with depthwise stages in the memory format that it is fastest in, where nothing says which.

        Their time may double in the other one. `plan` and the network's provenance then have it too.
        """
        depthwise = any(stage.depthwise for layer in plan.layers.values() for stage in convolutions(layer.chain))
        if plan.memory_format or not depthwise:
            return small
        own = memory_format_of(small)
        best, gain = _best(self._by_format(small, FORMATS))
        if best == own:
            return small
        self.notes.append(f"kept in the memory format {best}, where it takes {gain:.2f} of its time in {own}")
        plan.memory_format = (provenance(small) or Provenance()).plan.memory_format = best
        return to_memory_format(small, best)

    def compare(self, small: nn.Module) -> dict[str, Latency]:
        """Latency of the original and of the compressed network, in turns, each in its own memory format."""
        found = self._latencies({"original": self.opened.model, "compressed": small})
        ratio = found["compressed"].median / found["original"].median
        one = found["original"]
        how = f"batch {one.batch}, {one.threads} thread{'s' * (one.threads != 1)}, {one.device}"
        if ratio < 1:
            self.notes.append(f"measured latency: {ratio:.2f} of the original's ({how})")
        else:
            plain = self.settings.budget is not None and not self._by_latency
            hint = "; `--budget latency=0.9` beside the other budget plans for time too" if plain else ""
            self.notes.append(f"this network is not faster than the original: {ratio:.2f} of its latency ({how}){hint}")
        return found

    @cached_property
    def images(self) -> Tensor:
        """The calibration images that a correction looks at, [n, 3, H, W]: as many as memory allows."""
        largest = max(max(_values(call)) for call in self.calls.values())
        _, images, indices = calibration_set(self.settings, self.data, max(1, VALUES // largest))
        loader = make_loader(images, self.settings.batch_size, workers=self.settings.workers, indices=indices)
        dtype = self.opened.example().dtype
        return torch.cat([batch[0].to(dtype) for batch in loader])

    @cached_property
    def answers(self) -> Answers:
        """The original's answers to some of the images."""
        return Answers(self.opened.model, to_check(self.images, self.cost.total_macs))


def _best(found: Mapping[str, Latency]) -> tuple[str, float]:
    """The memory format that is worth changing to from the first one, or that one, and its share of the time."""
    own, best = next(iter(found)), min(found, key=lambda name: found[name].median)
    gain = found[best].median / found[own].median
    return (best, gain) if gain < WORTH else (own, 1.0)


def _values(call: Call) -> tuple[int, int]:
    """Numbers in the input and in the output of a layer on one image."""
    spec, before, after = call.spec, 0, 0
    for height, width in call.sizes:
        rows, columns = spec.output_size((height, width))
        before += spec.in_channels * height * width
        after += spec.out_channels * rows * columns
    return before, after
