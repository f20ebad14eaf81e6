"""From settings to a plan, and from a plan to a compressed network: what is repeated for every budget that is tried."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnncompress.chains.plan import Budget, Plan
from cnncompress.chains.spec import Call
from cnncompress.config import DecomposeSettings
from cnncompress.correction import decompose_in_order, reconstruct, reestimate
from cnncompress.correction.graph import UNFOLLOWED, trace_graph
from cnncompress.data import Data, make_loader
from cnncompress.errors import CompressError, UsageError
from cnncompress.fitting import decompose
from cnncompress.latency.network import latency
from cnncompress.latency.setting import TimingSetting
from cnncompress.latency.table import LatencyTable
from cnncompress.latency.timed import Latency
from cnncompress.network.checking import check_weights, remarks_on
from cnncompress.network.costs import Profile
from cnncompress.network.device import resolve_device
from cnncompress.network.divergence import Answers, agreement, to_check
from cnncompress.network.evaluate import Evaluation
from cnncompress.network.inputs import input_dtype, read_batch
from cnncompress.network.memory_format import memory_format_of
from cnncompress.network.standing_in import examine
from cnncompress.pipeline.calibration import (
    Calibration,
    calibrate,
    calibration_set,
    metric_of,
    most_images,
    with_gradients,
)
from cnncompress.pipeline.formats import beside, converted, fastest, in_formats, in_words
from cnncompress.pipeline.images import evaluate_on
from cnncompress.pipeline.opened import Opened, count_outputs
from cnncompress.pipeline.original import original_of
from cnncompress.planning import (
    Choice,
    Planner,
    choices_of,
    network_clock,
    plan_by_rank,
    read_plan,
    reasons_of,
    seeded,
    settled_table,
    with_reasons,
)
from cnncompress.runs.rebuild import check_packed
from cnncompress.terminal.console import Steps
from cnncompress.terminal.words import counted


class Compressor:
    """Everything about one network that planning and fitting need, each made when it is first asked for."""

    def __init__(
        self, settings: DecomposeSettings, opened: Opened, data: Data | None, cost: Profile, out: Path, phases: Steps
    ) -> None:
        self.settings, self.opened, self.data, self.out, self.phases = settings, opened, data, out, phases
        self.cost = cost
        self.told = Calibration()
        self.notes: list[str] = []
        self.metric = metric_of(settings)
        check_weights(opened.model)
        check_packed(opened.model, opened.provenance)
        self._check_format(settings.memory_format or "")
        default = Choice(seeded(settings.method, settings.seed), settings.rank)
        rules = {
            pattern: Choice(
                seeded(rule.method or settings.method, settings.seed), default.rank if rule.rank is None else rule.rank
            )
            for pattern, rule in settings.per_layer.items()
        }
        self.calls: Mapping[str, Call] = examine(opened.model, opened.example())
        self.choices, self.reasons = choices_of(
            opened.model, self.calls, default, rules, settings.layers, settings.skip
        )
        self.reasons |= reasons_of(cost)
        self.remarks = remarks_on(opened.model, opened.example(2))
        self.settings, told = with_gradients(settings, opened)
        self.metric = metric_of(self.settings)
        self.remarks += told

    def _check_format(self, memory_format: str) -> None:
        """UsageError where the network does not run in the memory format that was asked for."""
        if memory_format in ("", memory_format_of(self.opened.model)):
            return
        try:
            converted(self.opened.model, self.opened.example(), memory_format)
        except CompressError as error:
            raise UsageError(f"this network does not run in the memory format {memory_format}: {error}") from error

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
                    metric = None if self.data is None else settings.metric
                    found = read_plan(settings.plan, self.calls, self.reasons, self.corrected, metric)
                else:
                    centred = self.metric.centred or self.corrected
                    found = plan_by_rank(self.choices, self.calls, self.metric.name, False, centred)
        found.memory_format = found.memory_format or self.memory_format
        self._check_format(found.memory_format)
        return with_reasons(found, self.reasons, self.calls)

    def fit(self, plan: Plan) -> nn.Module:
        """The compressed network of a plan, corrected as the settings ask for; `notes` then tell what was done."""
        settings, model = self.settings, self.opened.model
        self.notes = []
        if not self.told.statistics:
            self._calibrate(plan.layers)
        statistics = self.told.statistics
        with self.phases("factorize", f"fit {counted(len(plan.layers), 'layer')}"):
            if not self.corrected:
                return self._reconstructed(
                    decompose(
                        model, plan, statistics=statistics, refine=1 if settings.refine is None else settings.refine
                    )
                )
            if trace_graph(model, self.images[:1]) is None:
                self.notes.append(UNFOLLOWED)
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
        """Accuracy on the evaluation images, or None without data and for a network that tells no classes apart."""
        if self.data is None or count_outputs(self.opened) is None:
            return None
        with self.phases(
            "evaluate", f"evaluate the {'original' if model is self.opened.model else 'compressed'} network"
        ):
            return evaluate_on(model, self.data, self.settings)

    def compare_answers(self, small: nn.Module) -> None:
        """Note how near the answers are to the original's, on images that calibrated nothing, where no accuracy is."""
        data = self.data
        if data is None or (data.labelled and count_outputs(self.opened) is not None):
            return
        with self.phases("evaluate", "compare the answers with the original's"):
            loader = make_loader(data.val, self.settings.batch_size, workers=self.settings.workers)
            found = agreement(self.opened.model, small, loader)
        told = f"the answers diverge by {found.divergence:.3g} nats"
        if found.same is not None:
            told = f"the most probable class is the original's for {found.same:.2f} %, and {told}"
        self.notes.append(f"on {found.images} images{' without labels' * (not data.labelled)}, {told}")

    @property
    def predicts_nats(self) -> bool:
        """True where the errors of a plan are nats."""
        return self.metric.nats or self.corrected

    def _calibrate(self, layers: Mapping[str, object]) -> None:
        with self.phases("calibrate", f"collect the statistics of {counted(len(layers), 'layer')}"):
            self.told = calibrate(self.settings, self.opened, layers, self.data, self.out)

    @cached_property
    def planner(self) -> Planner:
        """Candidates for every layer that may change."""
        settings, opened = self.settings, self.opened
        self._calibrate(self.choices)
        with self.phases("candidates", f"try methods and ranks on {counted(len(self.choices), 'layer')}"):
            return Planner(
                opened.model,
                opened.example(),
                self.choices,
                self.calls,
                metric=self.metric.name,
                statistics=self.told.statistics,
                multiple=settings.multiple or (8 if resolve_device(settings.device).type == "cuda" else None),
                answers=self.answers if self.corrected else None,
                table=self.table,
                original_ms=self.originals[self.memory_format].median if self.table else None,
                reference_ms=self.originals[self.reference].median if self.table else None,
                clock=self._clock if self.table else None,
            )

    @cached_property
    def _clock(self) -> Callable[[Plan], float]:
        """Tells the milliseconds of the whole network after a plan, in the memory format that the run is to have."""
        clocked = self._formats[self.reference], self.opened.example(), self.originals[self.reference].median
        return network_clock(*clocked, self.memory_format, **self._timing)

    @cached_property
    def _formats(self) -> dict[str, nn.Module]:
        """The network in every memory format that it runs in, its own first."""
        return in_formats(self.opened.model, self.opened.example())

    @cached_property
    def originals(self) -> dict[str, Latency]:
        """Latency of the network by memory format, its own first, where the budget is one of latency."""
        return self._latencies(self._formats)

    @property
    def reference(self) -> str:
        """The memory format that the network is fastest in, which shares of latency are of."""
        return fastest(self.originals)

    def _latencies(self, models: dict[str, nn.Module]) -> dict[str, Latency]:
        with self.phases("latency", "time the networks"):
            return latency(models, self.opened.example(), **self._timing)

    @property
    def _timing(self) -> dict[str, Any]:
        device = str(resolve_device(self.settings.device))
        return {"batch": self.settings.latency_batch, "threads": self.settings.threads, "device": device}

    @cached_property
    def memory_format(self) -> str:
        """The one asked for, or for a budget of latency the one that the network is fastest in; "" for its own."""
        if self.settings.memory_format or not self._by_latency:
            return self.settings.memory_format or ""
        return self.reference

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
            return settled_table(self._formats[self.memory_format], self.opened.example(), self.calls, setting)

    def timed(self, small: nn.Module, plan: Plan) -> tuple[nn.Module, dict[str, Latency]]:
        """The network of a plan, in its fastest memory format unless the plan names one, and latencies of `compare`.

        Where no budget of latency asks for them, a network that cannot be timed has none, and `notes` tell why.
        """
        try:
            models = {plan.memory_format: small} if plan.memory_format else in_formats(small, self.opened.example())
            originals, found = self.compare(models)
        except CompressError as error:
            if self._by_latency:
                raise
            self.notes.append(f"the latency was not measured: {error}")
            return small, {}
        own, best, before = next(iter(models)), fastest(found), originals[fastest(originals)]
        if best != own:
            gain = found[best].median / found[own].median
            self.notes.append(f"kept in the memory format {best}, where it takes {gain:.2f} of its time in {own}")
            plan.memory_format = best
        if found[best].median >= before.median and self.settings.budget is not None and not self._by_latency:
            self.notes.append("`--budget latency=0.9` beside the other budget plans for time too")
        self.notes += in_words(originals)
        return models[best], {"original": before, "compressed": beside(before, found[best])}

    def compare(self, models: dict[str, nn.Module]) -> tuple[dict[str, Latency], dict[str, Latency]]:
        """Latency of the original, in all memory formats it runs in, and of a compressed network, all in turns."""
        original = original_of(self.opened.run)
        originals = self._formats if original is None else in_formats(original, self.opened.example())
        named = {"original": originals, "compressed": models}
        found = self._latencies({f"{what}, {name}": m for what, by in named.items() for name, m in by.items()})
        before, after = ({name: found[f"{what}, {name}"] for name in by} for what, by in named.items())
        return before, after

    @cached_property
    def images(self) -> Tensor:
        """The calibration images that a correction looks at, [n, 3, H, W]: as many as memory allows."""
        _, images, indices = calibration_set(self.settings, self.data, most_images(self.calls))
        loader = make_loader(images, self.settings.batch_size, workers=self.settings.workers, indices=indices)
        dtype = input_dtype(self.opened.model)
        return torch.cat([read_batch(batch, dtype, labels=False)[0] for batch in loader])

    @cached_property
    def answers(self) -> Answers:
        """The original's answers to some of the images."""
        return Answers(self.opened.model, to_check(self.images, self.cost.total_macs))
