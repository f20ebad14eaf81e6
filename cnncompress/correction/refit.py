"""One layer, fitted to the inputs that it really gets in the compressed network."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Collection, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn

from cnncompress.chains.compose import extract_groups
from cnncompress.chains.modules import FactoredLayer
from cnncompress.chains.plan import Plan
from cnncompress.chains.spec import ConvSpec
from cnncompress.correction.after import After, Aims, after_of
from cnncompress.correction.target import Positions, Samples
from cnncompress.correction.walk import Visit
from cnncompress.fitting import Fitted, Fitting, fit_layer
from cnncompress.metrics import LayerStatistics, best_with
from cnncompress.network.kinds import dense_weight, kind_of, spec_of
from cnncompress.network.positions import sample_positions

POSITIONS_PER_IMAGE = 64
DEPTHWISE_POSITIONS = 16  # an image: the filters of a depthwise layer have few weights, and together many inputs
WIDEST_REFIT = 8192  # inputs a position; a wider layer is fitted to the statistics of the original
WIDEST_REPEATED = 640  # inputs a position; wider layers are fitted once, and refined once
SWEEPS, ROUNDS = 5, 2  # of layers that are not wider


@dataclasses.dataclass(frozen=True)
class Correction:
    """How layers are fitted in network order.

    `refine` is that of `fitting.decompose`; None is `SWEEPS` for layers of at most `WIDEST_REPEATED` inputs a position,
    and 1 for others, whose sweeps take long. The same goes for `rounds`: each but the first takes into account what the
    rectification after the layer hides. Without `refit` only the biases of chains follow the real inputs, so that each
    chain's mean output is that of the layer. `adjust` names convolutions that get new kernels where they stay. `seed`
    draws the positions of each image that are looked at.
    """

    refine: int | None = None
    refit: bool = True
    adjust: Collection[str] = ()
    rounds: int = ROUNDS
    seed: int = 0


@dataclasses.dataclass
class Refits:
    """Fits the layers of a plan; `done` has what was fitted so far, `adjusted` what was given another kernel.
    Of these, `narrowed` take fewer channels than in the original.

    `seeds` are those of the images, `repeated` the layers that are called more than once on an image, `shown` is a
    progress bar over the layers of the plan.
    """

    plan: Plan
    statistics: Mapping[str, LayerStatistics]
    correction: Correction
    seeds: Sequence[int]
    repeated: Collection[str]
    shown: Any
    done: dict[str, Fitted] = dataclasses.field(default_factory=dict)
    adjusted: list[str] = dataclasses.field(default_factory=list)
    narrowed: Set[str] = frozenset()

    @property
    def begun(self) -> bool:
        """True once something in the compressed network is another."""
        return bool(self.done or self.adjusted)

    def fit(self, visit: Visit, module: nn.Module) -> FactoredLayer:
        """The chain for a layer, fitted to its real input and the original's output."""
        name = visit.layer
        self.shown.set_postfix_str(name)
        inputs = _inputs(self.plan.layers[name].spec)
        if name in self.repeated or not self.correction.refit or inputs > WIDEST_REFIT:
            fitted = self._shifted(visit, module)
        else:
            fitted = self._refitted(visit, module)
        fitted.kernels = None  # the chain has them
        self.done[name] = fitted
        self.shown.update()
        return fitted.chain

    def _shifted(self, visit: Visit, module: nn.Module) -> Fitted:
        """The fit to the statistics, with the mean output that the original has."""
        name = visit.layer
        plan, statistics = self.plan.layers[name], self.statistics.get(name)
        fitted = fit_layer(name, module, plan, Fitting(self.plan.metric, statistics, self._refine(plan.spec)))
        if name not in self.repeated:  # one call does not tell what the others need
            positions = self._positions(visit)
            given = positions.outputs(fitted.chain(visit.input))
            _shift(fitted.chain, given, self._aims(visit, positions, 1).wanted)
        return fitted

    def _refitted(self, visit: Visit, module: nn.Module) -> Fitted:
        """The fit to the real inputs, in rounds."""
        name = visit.layer
        plan, statistics = self.plan.layers[name], self.statistics.get(name)
        spec, weight, positions = plan.spec, dense_weight(module), self._positions(visit)
        samples = Samples.of(positions.patches(visit.input), len(self.seeds))
        real = dataclasses.replace(samples.statistics, gradient=None if statistics is None else statistics.gradient)
        metric = best_with({"moment"} if real.gradient is None else {"moment", "gradient"}, self.plan.metric)
        aims = self._aims(visit, positions, self._rounds(spec))
        start: list[Tensor] | None = None
        given: Tensor | None = None
        for _ in range(aims.rounds):
            aim = aims.next(given)
            target = samples.target(weight, spec, aim)
            how = Fitting(metric, real, self._refine(spec), target, start)
            fitted = fit_layer(name, module, plan, how)
            start = fitted.kernels
            dense = extract_groups(fitted.chain.to_dense(), spec.groups)
            given = _shift(fitted.chain, samples.outputs(dense) + fitted.chain.offset(), aim)
        return fitted

    def adjust(self, visit: Visit, module: nn.Module) -> None:
        """Give a layer that stays the kernel that suits its real input."""
        kind, spec = kind_of(module), spec_of(module)
        widest = WIDEST_REFIT if visit.layer in self.narrowed else WIDEST_REPEATED
        if visit.layer in self.repeated or _inputs(spec) > widest:
            return
        weight, positions = dense_weight(module).clone(), self._positions(visit)
        samples = Samples.of(positions.patches(visit.input), len(self.seeds), free=spec.bias)
        aims, given = self._aims(visit, positions, self._rounds(spec)), None
        for _ in range(aims.rounds):
            aim = aims.next(given)
            kind.parameter(module).copy_(kind.laid_out(module, samples.target(weight, spec, aim)))
            bias = kind.bias(module)
            given = _shift(module, samples.outputs(dense_weight(module)) + (0.0 if bias is None else bias), aim)
        self.adjusted.append(visit.layer)

    def _refine(self, spec: ConvSpec) -> int:
        if self.correction.refine is not None:
            return self.correction.refine
        return SWEEPS if _inputs(spec) <= WIDEST_REPEATED else 1

    def _rounds(self, spec: ConvSpec) -> int:
        return self.correction.rounds if _inputs(spec) <= WIDEST_REPEATED else 1

    def _positions(self, visit: Visit) -> Positions:
        """Those that are looked at, the same in both networks."""
        kind, spec, key = kind_of(visit.module), spec_of(visit.module), (zlib.crc32(visit.layer.encode()), 0)
        count = kind.position_count(visit.input, spec)
        each = min(POSITIONS_PER_IMAGE, DEPTHWISE_POSITIONS if spec.depthwise else POSITIONS_PER_IMAGE)
        return Positions(kind, spec, sample_positions(self.seeds, key, count, each)[0])

    def _aims(self, visit: Visit, positions: Positions, rounds: int) -> Aims:
        return Aims.of(visit, after_of(visit) if self.correction.refit else After(), positions, rounds)


def _inputs(spec: ConvSpec) -> int:
    """Inputs of one output position."""
    return spec.weights // spec.out_channels


def _shift(module: nn.Module, given: Tensor, wanted: Tensor) -> Tensor:
    """Let the bias of a layer or chain, if it has one, take its outputs `given` [R, F] to the mean of `wanted`."""
    shift = wanted.mean(0, dtype=torch.float64) - given.mean(0, dtype=torch.float64)
    if isinstance(module, FactoredLayer):
        module.add_to_bias(shift)
    elif (bias := kind_of(module).bias(module)) is not None:
        bias.add_(shift)
    else:
        return given
    return given + shift.to(given.dtype)
