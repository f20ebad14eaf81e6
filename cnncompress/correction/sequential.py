"""Fit every chain to the inputs that the compressed layers before it really produce.

For a layer with weight W and inputs x in the original network, x̃ in the compressed one, the sum of squares of
Wx − W̃x̃ is that of (W' − W̃)x̃ plus a constant, W' = E[Wx x̃ᵀ] E[x̃x̃ᵀ]⁻¹ (asymmetric reconstruction, Zhang et al. 2015).
So the chain is fitted to W' in the metric of the real inputs, all its stages included. Where the output is added to
another branch, it makes up for the error of that branch too; where it is rectified, what both networks rectify to
nothing does not count. Convolutions that stay and layers that take fewer channels are given the kernel W'.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import Tensor, nn

from cnncompress.chains.plan import Plan
from cnncompress.chains.spec import Call
from cnncompress.correction.refit import Correction, Refits
from cnncompress.correction.walk import one_by_one, walk
from cnncompress.fitting import copy_for, finished
from cnncompress.metrics import LayerStatistics
from cnncompress.network.compressed import Compressed, with_provenance
from cnncompress.network.graph import Runner, trace_graph
from cnncompress.network.inputs import float_types, in_single, input_dtype, read_batch, with_types
from cnncompress.network.kinds import kind_of
from cnncompress.network.layers import layers_of, refused_in_network
from cnncompress.network.positions import image_seeds
from cnncompress.network.run import inference
from cnncompress.network.selection import select
from cnncompress.network.subject import Subject, look_at
from cnncompress.network.swap import Places
from cnncompress.terminal.console import bar

ACTIVATION_VALUES = 2**28  # of the images that a correction looks at, in the largest layer: 1 GiB in float32
UNFOLLOWED = (
    "torch.fx cannot trace the forward pass: each layer was corrected for its own output alone, and the kernels of "
    "kept layers were not refitted"
)
ADJUSTED = "; its kernel is refitted to the outputs of the compressed layers before it"


def decompose_in_order(
    model: nn.Module,
    plan: Plan,
    images: Tensor,
    *,
    statistics: Mapping[str, LayerStatistics] | None = None,
    correction: Correction | None = None,
    progress: bool = True,
) -> nn.Module:
    """As `fitting.decompose`, every chain fitted to what the compressed layers before it make of `images` [n, 3, h, w].

    The network is on the CPU. Of the layers that `correction` names for adjustment, convolutions that stay and come
    after a chain are given new kernels; not the network's last layer, whose outputs count together rather than position
    by position. A layer that is called more than once on an image is left at what `fitting.decompose` gives.
    `statistics` and `progress` are those of `fitting.decompose`. Raises as that does, and UnsupportedLayerError for a
    plan whose chains have no bias.
    """
    images, _ = read_batch(images, input_dtype(model), labels=False)
    subject = look_at(model, images[:1], with_provenance(model).provenance)
    return fit_in_order(subject, plan, images, statistics or {}, correction or Correction(), progress).made.network


@dataclasses.dataclass(frozen=True)
class InOrder:
    """A network fitted in its own order; `followed` is False where torch.fx could not follow its forward pass."""

    made: Compressed
    followed: bool


def fit_in_order(
    subject: Subject,
    plan: Plan,
    images: Tensor,
    statistics: Mapping[str, LayerStatistics],
    correction: Correction,
    progress: bool = True,
) -> InOrder:
    """As `decompose_in_order`, of a network that was looked at before; the images are of its type."""
    model, precise = subject.network, in_single(subject.network)
    if precise is model:
        return _fitted(subject, plan, images, statistics, correction, progress)
    single = dataclasses.replace(subject, network=precise)
    fitted = _fitted(single, plan, images.float(), statistics, correction, progress)
    with_types(fitted.made.network, float_types(model), input_dtype(model))
    return fitted


def _fitted(
    subject: Subject,
    plan: Plan,
    images: Tensor,
    statistics: Mapping[str, LayerStatistics],
    correction: Correction,
    progress: bool,
) -> InOrder:
    """The compressed network, of one in float32 or float64."""
    model, calls = subject.network, subject.calls
    selected = select(model, plan, statistics)
    small, statistics = copy_for(selected, model, plan), selected.statistics(statistics)
    repeated = {name for name, call in calls.items() if len(call.sizes) > 1}
    free = adjustable(model, plan, calls, correction)
    with bar(progress=progress, total=len(plan.layers), desc="fit", unit="layer", leave=False) as shown:
        refits = Refits(plan, statistics, correction, image_seeds(images, correction.seed), repeated, shown)
        graph = trace_graph(model, images[:1])
        if graph is not None:
            refits.narrowed = selected.errors.keys() - plan.layers.keys() if correction.refit else set()
            outputs = {name: chosen.outputs for name, chosen in selected.chosen.items()}
            _refit_in_graph(Runner(graph, model), Runner(graph, small, outputs), images, refits, free)
        hidden = [name for name in plan.layers if name not in refits.done]  # those that the graph does not show
        places = Places(small)
        for visit in one_by_one(model, small, images, hidden):
            places.swap(visit.layer, refits.fit(visit, small.get_submodule(visit.layer)))
    for name in plan.layers:  # both networks were in eval mode until here
        small.get_submodule(name).train(model.get_submodule(name).training)
    kept = {n: reason + ADJUSTED * (n in refits.adjusted) for n, reason in plan.kept.items()}
    rises = selected.rises | {n: f.rise for n, f in refits.done.items() if f.rise is not None}
    errors = selected.errors | {n: f.error for n, f in refits.done.items()}
    made = finished(subject.provenance, small, dataclasses.replace(plan, kept=kept), errors, rises)
    return InOrder(made, graph is not None)


def adjustable(model: nn.Module, plan: Plan, calls: Mapping[str, Call], correction: Correction) -> set[str]:
    """The layers that stay and may be given other kernels."""
    if not correction.refit:
        return set()
    layers = layers_of(model)
    last = max(calls, key=lambda n: calls[n].order, default=None)
    free = {n for n in correction.adjust if n in layers and kind_of(layers[n]).adjustable}
    return free - plan.layers.keys() - {last} - refused_in_network(layers, calls).keys()


def _refit_in_graph(original: Runner, compressed: Runner, images: Tensor, refits: Refits, free: set[str]) -> None:
    """Put chains into the compressed network, in network order, and adjust the `free` convolutions after the first.

    Layers that take fewer channels are adjusted in any case.
    """
    chains, small = refits.plan.layers.keys(), compressed.network
    staying = free | refits.narrowed
    with inference(original.network), inference(small):
        for visit in walk(original, compressed, images, chains | staying):
            if visit.layer in staying:
                if refits.begun or visit.layer in refits.narrowed:
                    refits.adjust(visit, small.get_submodule(visit.layer))
            elif visit.layer not in refits.done:
                compressed.replaced[visit.layer] = refits.fit(visit, small.get_submodule(visit.layer))
            del visit  # its tensors are not needed while the next layers run
    places = Places(small)
    for name, chain in compressed.replaced.items():
        places.swap(name, chain)


def most_images(calls: Mapping[str, Call]) -> int:
    """How many images may be in memory at once: no layer's inputs or outputs exceed `ACTIVATION_VALUES`."""
    return max(1, ACTIVATION_VALUES // max(max(_values(call)) for call in calls.values()))


def _values(call: Call) -> tuple[int, int]:
    """Numbers in the input and in the output of a layer on one image."""
    spec, before, after = call.spec, 0, 0
    for height, width in call.sizes:
        rows, columns = spec.output_size((height, width))
        before += spec.in_channels * height * width
        after += spec.out_channels * rows * columns
    return before, after
