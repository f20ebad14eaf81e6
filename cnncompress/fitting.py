"""From a network and a plan to a compressed network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cnncompress.chains.compose import extract_groups
from cnncompress.chains.lowering import lower_kernels
from cnncompress.chains.modules import FactoredLayer
from cnncompress.chains.plan import LayerPlan, Narrowed, Plan
from cnncompress.decompositions import get_method
from cnncompress.errors import in_layer
from cnncompress.maths.linalg import check_finite
from cnncompress.metrics import Metric, get_metric, layer_metrics, relative_error, squared_error
from cnncompress.metrics.statistics import LayerStatistics
from cnncompress.network.compressed import Compressed, compressed, with_provenance
from cnncompress.network.copying import clone
from cnncompress.network.kinds import dense_weight, spec_of
from cnncompress.network.memory_format import to_memory_format
from cnncompress.network.preprocessing import Preprocessing
from cnncompress.network.provenance import Provenance
from cnncompress.network.selection import Selected, select
from cnncompress.network.swap import Places, build_chain
from cnncompress.terminal.console import bar


def decompose(
    model: nn.Module,
    plan: Plan,
    *,
    statistics: Mapping[str, LayerStatistics] | None = None,
    refine: int = 1,
    progress: bool = True,
) -> nn.Module:
    """A new network in which every layer of `plan` is replaced by its chain; `model` stays as it is.

    `statistics` are those of `collect_statistics`, for a metric that needs them. `refine` 0 takes a method's own
    procedure, 1 refits each chain's last stage, each further one improves all its stages. `progress` shows a bar on a
    terminal. Layers on the meta device are replaced in shape only. Raises CompressError for NaN or infinite weights,
    UsageError for missing statistics.
    """
    known = with_provenance(model).provenance
    return fit_alone(model, known, plan, statistics=statistics, refine=refine, progress=progress).network


def fit_alone(
    model: nn.Module,
    before: Provenance,
    plan: Plan,
    *,
    statistics: Mapping[str, LayerStatistics] | None = None,
    refine: int = 1,
    progress: bool = True,
) -> Compressed:
    """As `decompose`, of a network that comes from `before`."""
    selected = select(model, plan, statistics or {})
    small, statistics = copy_for(selected, model, plan), selected.statistics(statistics or {})
    errors, rises = selected.errors, selected.rises
    places = Places(small)
    layers = bar(plan.layers.items(), progress=progress, desc="decompose", unit="layer", leave=False)
    for name, layer_plan in layers:
        layers.set_postfix_str(name)
        how = Fitting(plan.metric, statistics.get(name), refine)
        fitted = fit_layer(name, small.get_submodule(name), layer_plan, how)
        errors[name] = fitted.error
        if fitted.rise is not None:
            rises[name] = fitted.rise
        places.swap(name, fitted.chain)
    return finished(before, small, plan, errors, rises)


def initialise(model: nn.Module, before: Provenance, plan: Plan, seed: int = 0) -> Compressed:
    """A new network, from one that comes from `before`, whose layers of `plan` are chains with random kernels.

    Kernels are those of the methods' papers, biases zero. Nothing is fitted, so that there are no errors.
    """
    selected = select(model, plan, {})
    small, generator = copy_for(selected, model, plan), torch.Generator().manual_seed(seed)
    places = Places(small)
    for name, layer_plan in plan.layers.items():
        original = small.get_submodule(name)
        chain = build_chain(layer_plan, None, original)
        if not dense_weight(original).is_meta:
            method = get_method(layer_plan.method, **layer_plan.options)
            kernels = method.scratch(layer_plan.spec, layer_plan.rank, generator)
            kernels = lower_kernels(method.stages(layer_plan.spec, layer_plan.rank), kernels, layer_plan.lowering)
            chain = build_chain(layer_plan, kernels, original)
            chain.write_kernels([kernel.to(dense_weight(original).device) for kernel in kernels])  # biases are zero
        places.swap(name, chain)
    return finished(before, small, plan, {}, {})


def copy_for(selected: Selected, model: nn.Module, plan: Plan) -> nn.Module:
    """The narrowed network, in which chains can be put; a copy of it where it is `model` itself."""
    if selected.network is not model:
        return selected.network
    replaced = [model.get_submodule(name) for name in plan.layers]
    return clone(model, {id(m): m for m in replaced})  # layers on their way out need no copy


def finished(
    before: Provenance, small: nn.Module, plan: Plan, errors: dict[str, float], rises: dict[str, float]
) -> Compressed:
    """`small` in the plan's memory format, with what was known `before` and what the fit of its layers gave."""
    merged = Plan({**before.plan.layers, **plan.layers}, _kept(before.plan, plan), plan.metric)
    merged.memory_format = plan.memory_format or before.plan.memory_format
    merged.narrowed = _narrowed(before.plan.narrowed, plan.narrowed)
    merged.channels = {**before.plan.channels, **plan.channels}
    merged.rises, merged.achieved, merged.times = dict(plan.rises), dict(plan.achieved), dict(plan.times)
    small = to_memory_format(small, plan.memory_format)
    prepared = before.preprocessing or _as_given(plan.input_shape)
    return compressed(small, Provenance(before.source, prepared, merged, {**before.errors, **errors}, rises))


def _narrowed(before: Mapping[str, Narrowed], now: Mapping[str, Narrowed]) -> dict[str, Narrowed]:
    """The layers narrowed by two plans, one after the other, from what they were at first."""
    again = {
        name: dataclasses.replace(n, spec=before[name].spec, macs=(before[name].macs[0], n.macs[1]))
        for name, n in now.items()
        if name in before
    }
    return {**before, **now, **again}


def _as_given(shape: tuple[int, ...]) -> Preprocessing | None:
    """Images of the shape [c, h, w] that a plan was made with, with their pixels as they are."""
    if len(shape) != 3:
        return None
    channels, height, width = shape
    return Preprocessing((height, width), None, mean=(0.0,) * channels, std=(1.0,) * channels)


def _kept(before: Plan, now: Plan) -> dict[str, str]:
    kept = {**before.kept, **now.kept}
    return {name: reason for name, reason in kept.items() if name not in before.changes and name not in now.changes}


@dataclasses.dataclass
class Fitted:
    """The chain for one layer, its kernels, its relative error in the metric, and the predicted rise in nats."""

    chain: FactoredLayer
    error: float = float("nan")
    rise: float | None = None
    kernels: list[Tensor] | None = None


@dataclasses.dataclass(frozen=True)
class Fitting:
    """How a layer is fitted: in which metric, with which of its statistics, and refined how often.

    `target` [F, C/g, kh, kw] takes the place of the layer's weight; `start` is that of `Decomposition.factorize`.
    """

    metric: str
    statistics: LayerStatistics | None = None
    refine: int = 1
    target: Tensor | None = None
    start: list[Tensor] | None = None


@in_layer
def fit_layer(name: str, module: Any, layer_plan: LayerPlan, how: Fitting) -> Fitted:
    """Factorize one layer; on the meta device in shape only, without an error.

    Under a centred metric the bias takes back what the error does to the mean output.
    """
    spec = spec_of(module)
    weight = dense_weight(module) if how.target is None else how.target
    if weight.is_meta:
        return Fitted(build_chain(layer_plan, None, module))
    check_finite(weight, name)
    metrics = layer_metrics(how.metric, spec, how.statistics)
    weight = weight if how.statistics is None else weight.cpu()  # where the statistics are
    method = get_method(layer_plan.method, **layer_plan.options)
    kernels = method.factorize(weight, spec, layer_plan.rank, metrics, how.refine, how.start)
    stages = method.stages(spec, layer_plan.rank)
    chain = build_chain(layer_plan, lower_kernels(stages, kernels, layer_plan.lowering), module)
    dense = extract_groups(chain.to_dense(), spec.groups).to(weight.device)
    result = Fitted(chain, relative_error(metrics, weight, dense), kernels=kernels)
    kind = get_metric(how.metric)
    if kind.centred:
        chain.add_to_bias(mean_error(metrics, weight.double() - dense.double()))
    if kind.nats:
        result.rise = squared_error(metrics, weight.double() - dense.double()) / 2
    return result


def mean_error(metrics: Sequence[Metric], delta: Tensor) -> Tensor:
    """Δ · mean input, [F]: what an error Δ [F, C/g, kh, kw] takes from the mean output."""
    parts = zip(metrics, delta.chunk(len(metrics)), strict=True)
    return torch.cat([part.flatten(1) @ metric.mean.double() for metric, part in parts if metric.mean is not None])
