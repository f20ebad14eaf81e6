"""The weights of a run beside its original's, for pictures of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cnncompress.chains.modules import FactoredLayer
from cnncompress.chains.plan import LayerPlan
from cnncompress.decompositions import get_method
from cnncompress.errors import UnsupportedLayerError
from cnncompress.models.sources import PROGRAM_ONLY
from cnncompress.network.kinds import dense_weight
from cnncompress.network.layers import layers_of
from cnncompress.pipeline.opened import Opened, is_program
from cnncompress.planning import choose_method
from cnncompress.reporting.pictures import Filters, Pictures, Spectrum
from cnncompress.terminal.console import LOG, bar

POINTS = 48  # of a spectrum
MOST_FILTERS = 128  # that are shown
COLOURS = (1, 3)  # channels of a picture
NO_ORIGINAL = "the original's weights are not at hand: no spectra and no filters are shown"


def pictures_of(opened: Opened, original: nn.Module | None) -> Pictures:
    """The pictures of a run beside its `original`; where they cannot be had, they say why."""
    if is_program(opened):
        return Pictures(missing=f"no spectra and no filters are shown: {PROGRAM_ONLY}")
    if original is None:
        return Pictures(missing=NO_ORIGINAL)
    LOG.debug("spectra of %s", opened.name)
    weights = {name: dense_weight(layer).detach().cpu() for name, layer in layers_of(original).items()}
    return Pictures(
        spectra_of(weights, opened.provenance.plan.layers),
        filters_of(weights, opened.model, opened.preprocessing.channels),
    )


def spectra_of(weights: Mapping[str, Tensor], plan: Mapping[str, LayerPlan]) -> tuple[Spectrum, ...]:
    """The spectra of the layers that a plan replaces, of their weights [F, C/g, kh, kw] in the original.

    A layer that lost channels as well has the spectrum of those that it kept in the plan alone, and is left out.
    """
    found = []
    for name, change in bar(plan.items(), desc="spectra", unit="layer", leave=False):
        weight = weights.get(name)
        if weight is not None and weight.reshape(len(weight), -1).shape == _matrix_shape(change):
            found.append(_spectrum(name, weight, change))
    return tuple(found)


def _matrix_shape(change: LayerPlan) -> tuple[int, int]:
    rows, *others = change.spec.weight_shape
    return rows, int(torch.Size(others).numel())


def _spectrum(name: str, weight: Tensor, change: LayerPlan) -> Spectrum:
    spec, ranks = change.spec, "×".join(map(str, change.rank))
    values = get_method(change.method, **change.options).spectrum(weight, spec)
    truncated = values is not None and len(change.rank) == 1
    if values is None:
        values = choose_method("auto", spec)[0].spectrum(weight, spec)
    if values is None:
        return Spectrum(name, change.method, ranks, (), 0)
    energies = values.double().square().sum(0)  # of all groups
    sizes, full, total = energies.sqrt(), len(energies), float(energies.sum())
    places = sorted({round(i * (full - 1) / (POINTS - 1)) for i in range(POINTS)})
    points = tuple((i + 1, float(sizes[i] / sizes[0]) if total else 0.0) for i in places)
    rank = min(change.rank[0], full) if truncated else None
    energy = None if rank is None or not total else float(energies[:rank].sum()) / total
    return Spectrum(name, change.method, ranks, points, full, rank, energy)


def filters_of(weights: Mapping[str, Tensor], network: nn.Module, channels: int) -> Filters | None:
    """The first layer that takes the `channels` of images and extends in space, before and in `network`."""
    fits = (n for n, w in weights.items() if w.dim() == 4 and w.shape[1] == channels and w.shape[2] * w.shape[3] > 1)
    name = next(fits, None)
    if name is None or channels not in COLOURS:
        return None
    before, now = weights[name].float()[:MOST_FILTERS], _kernel_of(network.get_submodule(name))
    if now is None or now.shape[1:] != before.shape[1:]:
        return Filters(name, before.tolist())
    now = now[:MOST_FILTERS]
    lines = (share_of_a_line(before), share_of_a_line(now)) if channels == 3 else None
    return Filters(name, before.tolist(), now.tolist(), lines)


def _kernel_of(layer: nn.Module) -> Tensor | None:
    """The kernel [F, C, kh, kw] that does what a layer or a chain does, None where there is none of this size."""
    try:
        kernel = layer.to_dense() if isinstance(layer, FactoredLayer) else dense_weight(layer)
    except UnsupportedLayerError:
        return None
    return kernel.detach().cpu().float()


def share_of_a_line(kernels: Tensor) -> float:
    """How much of the squared weights of [F, 3, kh, kw] lies on one line through the origin of the colour space.

    The mean over the filters that are not zero of the largest squared singular value of [3, kh·kw], as a share of all.
    """
    energies = torch.linalg.svdvals(kernels.flatten(2).double()).square()
    totals = energies.sum(1)
    return float((energies[:, 0] / totals)[totals > 0].mean()) if bool((totals > 0).any()) else 0.0
