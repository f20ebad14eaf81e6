"""Fit every chain to the inputs that the compressed layers before it really produce.

For a layer with weight W and inputs x in the original network, x̃ in the compressed one, the sum of squares of
Wx − W̃x̃ is that of (W' − W̃)x̃ plus a constant, W' = E[Wx x̃ᵀ] E[x̃x̃ᵀ]⁻¹ (asymmetric reconstruction, Zhang et al. 2015).
So the chain is fitted to W' in the metric of the real inputs, all its stages included. Where the output is added to
another branch, it makes up for the error of that branch too; where it is rectified, what both networks rectify to
nothing does not count. Convolutions that stay are given the kernel W'.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, fx, nn

from cnncompress.chains.compose import extract_groups
from cnncompress.chains.modules import FactoredLayer, spec_of
from cnncompress.chains.plan import Plan
from cnncompress.chains.spec import ConvSpec
from cnncompress.correction.after import After, after_of
from cnncompress.correction.graph import Values, input_of, trace_graph, walk
from cnncompress.correction.target import Samples, outputs_at
from cnncompress.fitting import Fitted, finished, fit_layer
from cnncompress.metrics import LayerStatistics, best_with
from cnncompress.network.copying import clone
from cnncompress.network.inputs import float_types, in_single, input_dtype, read_batch, with_types
from cnncompress.network.layers import layers_of, refuse_in_network
from cnncompress.network.patches import gather_patches, image_seeds, position_count, sample_positions
from cnncompress.network.run import inference
from cnncompress.network.standing_in import examine
from cnncompress.network.swap import swap
from cnncompress.terminal.console import bar

POSITIONS = 64  # of an image and layer
WIDE = 8192  # inputs a position; a wider layer is fitted to the statistics of the original
SWEEPS, ROUNDS, NARROW = 5, 2, 640  # at most; layers of more inputs are fitted once, and refined once
ADJUSTED = "; its kernel is fitted to what the layers before it now give"


class _Order:
    """Fits the layers of a plan one after the other, and puts the chains into `small`."""

    def __init__(
        self,
        model: nn.Module,
        small: nn.Module,
        plan: Plan,
        images: Tensor,
        statistics: Mapping[str, LayerStatistics],
        rounds: int,
        seed: int,
    ) -> None:
        self.small, self.plan, self.statistics, self.rounds = small, plan, statistics, rounds
        self.seeds, self.images, self.calls = image_seeds(images, seed), len(images), examine(model, images)
        self.repeated = {name for name, call in self.calls.items() if len(call.sizes) > 1}
        self.done: dict[str, Fitted] = {}
        self.adjusted: list[str] = []

    def rows(self, name: str, x: Tensor, spec: ConvSpec) -> Tensor:
        """The output positions of layer `name` that are looked at, the same in both networks."""
        key = (zlib.crc32(name.encode()), 0)
        return sample_positions(self.seeds, key, position_count(x, spec), POSITIONS)[0]

    def fit(self, name: str, x: Tensor, y: Tensor, refit: bool, refine: int | None, after: After) -> None:
        """Fit layer `name` to its real input `x` and the original's output `y`, and swap the chain in."""
        plan, module, statistics = self.plan.layers[name], self.small.get_submodule(name), self.statistics.get(name)
        spec, index = plan.spec, self.rows(name, x, plan.spec)
        inputs = spec.weights // spec.out_channels
        refine = refine if refine is not None else SWEEPS if inputs <= NARROW else 1
        if name in self.repeated or not refit or inputs > WIDE:
            fitted = fit_layer(name, module, plan, self.plan.metric, statistics, refine)
            if name not in self.repeated:  # one call does not tell what the others need
                given, wanted = outputs_at(fitted.chain(x), spec, index), next(_aims(after, y, spec, index, 1)).outputs
                _shift(fitted.chain, given, wanted)
            self._put(name, fitted)
            return
        samples = Samples.of(gather_patches(x, spec, index), self.images)
        weight = module.weight.detach().reshape(spec.weight_shape)  # type: ignore[operator,union-attr]
        real = dataclasses.replace(samples.statistics, gradient=None if statistics is None else statistics.gradient)
        metric = best_with({"moment"} if real.gradient is None else {"moment", "gradient"}, self.plan.metric)
        kernels = None
        for aim in _aims(after, y, spec, index, self.rounds if inputs <= NARROW else 1):
            target = samples.target(weight, spec, aim.outputs)
            fitted = fit_layer(name, module, plan, metric, real, refine, target, kernels)
            kernels = fitted.kernels
            dense = extract_groups(fitted.chain.to_dense(), spec.groups)
            aim.given = _shift(fitted.chain, samples.outputs(dense) + fitted.chain.offset(), aim.outputs)
        self._put(name, fitted)

    def adjust(self, name: str, x: Tensor, y: Tensor, after: After) -> None:
        """Give a convolution that stays the kernel that suits its real input `x`."""
        module = self.small.get_submodule(name)
        assert isinstance(module, nn.Conv2d)
        spec = spec_of(module)
        if name in self.repeated or spec.weights // spec.out_channels > NARROW:
            return
        index, weight = self.rows(name, x, spec), module.weight.detach().clone()
        samples = Samples.of(gather_patches(x, spec, index), self.images, free=spec.bias)
        for aim in _aims(after, y, spec, index, self.rounds):
            module.weight.copy_(samples.target(weight, spec, aim.outputs))
            given = samples.outputs(module.weight) + (0.0 if module.bias is None else module.bias)
            aim.given = _shift(module, given, aim.outputs)
        self.adjusted.append(name)

    def _put(self, name: str, fitted: Fitted) -> None:
        fitted.kernels = None  # the chain has them
        self.done[name] = fitted
        swap(self.small, name, fitted.chain)


def decompose_in_order(
    model: nn.Module,
    plan: Plan,
    images: Tensor,
    *,
    statistics: Mapping[str, LayerStatistics] | None = None,
    refine: int | None = None,
    refit: bool = True,
    adjust: Collection[str] = (),
    rounds: int = ROUNDS,
    seed: int = 0,
    progress: bool = True,
) -> nn.Module:
    """As `fitting.decompose`, every chain fitted to what the compressed layers before it make of `images` [n, 3, h, w].

    Those of the convolutions `adjust` that stay and come after a chain get new kernels, which fit the real inputs;
    not the network's last layer, whose outputs count together rather than position by position. Without `refit`
    only the biases of chains follow the real inputs, so that each chain's mean output is that of the layer. The
    network is on the CPU. `refine` None is `SWEEPS` for layers of at most `NARROW` inputs a position, and 1 for
    others, whose sweeps take long; the same goes for `rounds`, of which each but the first takes into account what
    the rectification after the layer hides. `POSITIONS` outputs of each image and layer are looked at, drawn by
    `seed`; a layer that is called more than once on an image is left at what `fitting.decompose` gives. Raises as
    that does, and UnsupportedLayerError for a plan whose chains have no bias.
    """
    images, _ = read_batch(images, input_dtype(model), labels=False)
    if (precise := in_single(model)) is not model:
        settings: dict[str, Any] = {"statistics": statistics, "refine": refine, "refit": refit, "adjust": adjust}
        settings |= {"rounds": rounds, "seed": seed, "progress": progress}
        small = decompose_in_order(precise, plan, images.float(), **settings)
        return with_types(small, float_types(model), input_dtype(model))
    small = clone(model)
    order = _Order(model, small, plan, images, statistics or {}, rounds, seed)
    modules, layers = dict(model.named_modules()), layers_of(model)
    free = {n for n in adjust if refit and n not in plan.layers and isinstance(modules.get(n), nn.Conv2d)}
    last = max(order.calls, key=lambda n: order.calls[n].order, default=None)
    free = {n for n in free if n != last and refuse_in_network(n, layers, order.calls) is None}
    graph = trace_graph(model, images[:1])
    with bar(progress=progress, total=len(plan.layers), desc="fit", unit="layer", leave=False) as fitted:

        def fit(name: str, x: Tensor, y: Tensor, after: After) -> None:
            fitted.set_postfix_str(name)
            order.fit(name, x, y, refit, refine, after)
            fitted.update()

        def visit(node: fx.Node, values: Values, others: Values) -> None:
            name = str(node.target)
            if name in plan.layers and name not in order.done:
                after = after_of(node, modules, values, others) if refit else After()
                fit(name, others[input_of(node)], values[node], after)
            elif name in free and order.done:
                order.adjust(name, others[input_of(node)], values[node], after_of(node, modules, values, others))

        if graph is not None:
            walk(graph, model, small, images, visit)
        for name in plan.layers:  # those that the graph does not show
            if name not in order.done:
                fit(name, values_at(small, name, images)[0], values_at(model, name, images)[1], After())
    for name in plan.layers:  # both networks were in eval mode until here
        small.get_submodule(name).train(model.get_submodule(name).training)
    kept = {n: reason + ADJUSTED * (n in order.adjusted) for n, reason in plan.kept.items()}
    plan = dataclasses.replace(plan, kept=kept)
    rises = {n: f.rise for n, f in order.done.items() if f.rise is not None}
    return finished(model, small, plan, {n: f.error for n, f in order.done.items()}, rises)


@dataclasses.dataclass
class _Aim:
    """Outputs [R, F] to fit to, and what the fit then gives."""

    outputs: Tensor
    given: Tensor | None = None


def _aims(after: After, y: Tensor, spec: ConvSpec, index: Tensor, rounds: int) -> Iterator[_Aim]:
    """What to fit to, one after the other, from the original's output `y`; `given` is to be filled in each time."""
    wanted = outputs_at(y, spec, index)
    if after.missing is not None:
        wanted = wanted + outputs_at(after.missing, spec, index)
    yield (aim := _Aim(wanted))
    if after.level is None:
        return
    level = outputs_at(after.level.expand_as(y), spec, index)
    for _ in range(rounds - 1):
        assert aim.given is not None
        yield (aim := _Aim(after.aim(wanted, aim.given, level)))


def _shift(module: nn.Module, given: Tensor, wanted: Tensor) -> Tensor:
    """Let the bias of a layer or chain, if it has one, take its outputs `given` [R, F] to the mean of `wanted`."""
    shift = wanted.mean(0, dtype=torch.float64) - given.mean(0, dtype=torch.float64)
    if isinstance(module, FactoredLayer):
        module.add_to_bias(shift)
    elif module.bias is not None:
        module.bias += shift  # type: ignore[operator]
    else:
        return given
    return given + shift.to(given.dtype)


class _Reached(Exception):  # noqa: N818
    """Ends a forward pass early."""


def values_at(model: nn.Module, name: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """Input and output of a layer's first call on `images`."""
    found: list[tuple[Tensor, Tensor]] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        found.append((args[0] if args else kwargs["input"], output))
        raise _Reached

    handle = model.get_submodule(name).register_forward_hook(hook, with_kwargs=True)
    try:
        with inference(model), suppress(_Reached):
            model(images)
    finally:
        handle.remove()
    return found[0]
