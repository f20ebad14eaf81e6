"""Fit every chain to the inputs that the compressed layers before it really produce.

For a layer with weight W and inputs x in the original network, x̃ in the compressed one, the sum of squares of
Wx − W̃x̃ is that of (W' − W̃)x̃ plus a constant, W' = E[Wx x̃ᵀ] E[x̃x̃ᵀ]⁻¹ (asymmetric reconstruction, Zhang et al. 2015).
So the chain is fitted to W' in the metric of the real inputs, all its stages included. Where the output is added to
another branch, it makes up for the error of that branch too.
"""

from __future__ import annotations

import copy
import dataclasses
import zlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, fx, nn
from tqdm import tqdm

from cnncompress.correction.graph import Values, input_of, summand, trace_graph, walk
from cnncompress.factored import inference, swap, trace
from cnncompress.fitting import Fitted, finished, fit_layer
from cnncompress.linalg import oas_shrinkage, solve_psd
from cnncompress.spec import ConvSpec, LayerStatistics, Plan
from cnncompress.statistics.patches import gather_patches, image_seeds, position_count, sample_positions

POSITIONS = 64  # of an image and layer
WIDE = 8192  # inputs a position; a wider layer is fitted to the statistics of the original
SWEEPS, NARROW = 4, 1152
SMALL = 0.1  # of the median scale: a normalisation below it is not undone


@dataclasses.dataclass
class Target:
    """What a layer should do, seen from the compressed network.

    `weight` [F, C/g, kh, kw] is W', `output` [F] the mean of the original's outputs, `statistics` those of the real
    inputs x̃.
    """

    weight: Tensor
    output: Tensor
    statistics: LayerStatistics


def target_of(weight: Tensor, spec: ConvSpec, patches: Tensor, outputs: Tensor, images: int) -> Target:
    """W' and the statistics of the real inputs, from patches x̃ [R, g, n] and the outputs [R, F] that belong to them.

    W' is drawn to W as the second moment is to a multiple of the identity: as if there were further samples whose
    inputs are those of the original network, so that few images change little.
    """
    patches, count = patches.movedim(1, 0), len(patches)
    mean, output = patches.mean(1, dtype=torch.float64), outputs.mean(0, dtype=torch.float64)
    centred = patches - mean[:, None].to(patches.dtype)
    wanted = (outputs - output.to(outputs.dtype)).unflatten(1, (spec.groups, -1)).movedim(1, 0)  # [g, R, F/g]
    moment = (centred.mT @ centred).double() / count
    cross = (wanted.mT @ centred).double() / count
    found = []
    for part, m, c in zip(weight.double().flatten(1).chunk(spec.groups), moment, cross, strict=True):
        share, level = oas_shrinkage(m, count), float(m.diagonal().mean()) or 1.0
        ridge = share * level * torch.eye(len(m), dtype=torch.float64)
        found.append(solve_psd((1 - share) * m + ridge, (1 - share) * c + share * level * part))
    statistics = LayerStatistics(images, count, mean.float(), moment.float())
    return Target(torch.cat(found).reshape(spec.weight_shape), output, statistics)


class _Order:
    """Fits the layers of a plan one after the other, and puts the chains into `small`."""

    def __init__(
        self, model: nn.Module, small: nn.Module, plan: Plan, images: Tensor, statistics: Mapping[str, LayerStatistics]
    ) -> None:
        self.model, self.small, self.plan, self.statistics = model, small, plan, statistics
        self.seeds, self.images = image_seeds(images, 0), len(images)
        self.repeated = {name for name, call in trace(model, images).items() if len(call.sizes) > 1}
        self.done: dict[str, Fitted] = {}

    def rows(self, name: str, x: Tensor) -> Tensor:
        """The output positions of layer `name` that are looked at, the same in both networks."""
        spec = self.plan.layers[name].spec
        key = (zlib.crc32(name.encode()), 0)
        return sample_positions(self.seeds, key, position_count(x, spec), POSITIONS)[0]

    def fit(
        self, name: str, x: Tensor, y: Tensor, refit: bool, refine: int | None, missing: Tensor | None = None
    ) -> None:
        """Fit layer `name` to its real input `x` and the original's output `y`, and swap the chain in.

        `missing` is what another branch lacks, to be made up for in the output.
        """
        plan, module = self.plan.layers[name], self.small.get_submodule(name)
        spec, index, statistics = plan.spec, self.rows(name, x), self.statistics.get(name)
        inputs = spec.weights // spec.out_channels
        refine = refine if refine is not None else SWEEPS if inputs <= NARROW else 1
        wanted = outputs_at(y, spec, index)
        if missing is not None:
            wanted = wanted + outputs_at(missing, spec, index)
        if name in self.repeated:  # one call does not tell what the others need
            self._put(name, fit_layer(name, module, plan, self.plan.metric, statistics, refine))
            return
        if refit and inputs <= WIDE:
            weight = module.weight.detach().reshape(spec.weight_shape)  # type: ignore[operator,union-attr]
            target = target_of(weight, spec, gather_patches(x, spec, index), wanted, self.images)
            target.statistics.gradient = None if statistics is None else statistics.gradient
            metric = "data-covariance" if target.statistics.gradient is None else "kronecker"
            fitted = fit_layer(name, module, plan, metric, target.statistics, refine, target.weight)
        else:
            fitted = fit_layer(name, module, plan, self.plan.metric, statistics, refine)
        shift = wanted.mean(0, dtype=torch.float64) - outputs_at(fitted.chain(x), spec, index).mean(
            0, dtype=torch.float64
        )
        fitted.chain.add_to_bias(shift)
        self._put(name, fitted)

    def _put(self, name: str, fitted: Fitted) -> None:
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
    progress: bool = True,
) -> nn.Module:
    """As `fitting.decompose`, every chain fitted to what the compressed layers before it make of `images` [n, 3, h, w].

    Without `refit` only the biases follow the real inputs, so that each chain's mean output is that of the layer. The
    network is on the CPU. `refine` None is `SWEEPS` for layers of at most `NARROW` inputs a position, and 1 for others,
    whose sweeps take long. `POSITIONS` outputs of each image and layer are looked at; a layer that is called more than
    once on an image is left at what `fitting.decompose` gives. Raises as that does, and UnsupportedLayerError for a
    plan whose chains have no bias.
    """
    small = copy.deepcopy(model)
    order = _Order(model, small, plan, images, statistics or {})
    modules = dict(model.named_modules())
    graph = trace_graph(model)
    with tqdm(total=len(plan.layers), desc="fit", unit="layer", disable=None if progress else True) as bar:

        def fit(name: str, x: Tensor, y: Tensor, missing: Tensor | None = None) -> None:
            bar.set_postfix_str(name)
            order.fit(name, x, y, refit, refine, missing)
            bar.update()

        def visit(node: fx.Node, values: Values, others: Values) -> None:
            name = str(node.target)
            if name in plan.layers and name not in order.done:
                missing = lacking(node, modules, values, others) if refit else None
                fit(name, others[input_of(node)], values[node], missing)

        if graph is not None:
            walk(graph, model, small, images, visit)
        for name in plan.layers:  # those that the graph does not show
            if name not in order.done:
                fit(name, values_at(small, name, images)[0], values_at(model, name, images)[1])
    for name in plan.layers:  # both networks were in eval mode until here
        small.get_submodule(name).train(model.get_submodule(name).training)
    rises = {n: f.rise for n, f in order.done.items() if f.rise is not None}
    return finished(model, small, plan, {n: f.error for n, f in order.done.items()}, rises)


def outputs_at(y: Tensor, spec: ConvSpec, index: Tensor) -> Tensor:
    """The outputs [R, F] of a layer at the positions `index` [R], counted as in `gather_patches`."""
    if spec.linear:
        return y.reshape(-1, spec.out_channels)[index].float()
    width = y.shape[-2] * y.shape[-1]
    return y.flatten(2)[index // width, :, index % width].float()


def lacking(node: fx.Node, modules: Mapping[str, nn.Module], values: Values, others: Values) -> Tensor | None:
    """What has to be added to a convolution's output so that the sum it goes into is that of the original.

    None where it goes into no sum of equal shapes, or the rest of the sum comes after it. Channels that a normalisation
    makes very small are left nearly as they are.
    """
    found = summand(node, modules)
    if found is None or found[0] not in others:
        return None
    partner, norm = found
    if not isinstance(values[partner], Tensor) or values[partner].shape != values[node].shape:
        return None
    missing = values[partner] - others[partner]
    if norm is None:
        return missing
    if norm.running_var is None:  # what it divides by is not known before
        return None
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale * (1 if norm.weight is None else norm.weight.detach())
    floor = SMALL * float(scale.abs().median())
    return missing * (scale / (scale.square() + floor**2).clamp_min(1e-30))[:, None, None]


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
