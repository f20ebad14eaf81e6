"""The layers of a network: what they are, what they cost, which methods apply, how their energy lies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from cnncompress.errors import UsageError
from cnncompress.latency.setting import TimingSetting
from cnncompress.names.methods import SELECT
from cnncompress.network.checking import check_weights
from cnncompress.network.kinds import dense_weight, spec_of
from cnncompress.network.layers import layers_of, refuse_module
from cnncompress.network.subject import Subject, look_at
from cnncompress.network.widths import channels_of
from cnncompress.pipeline.asked import NetworkAsked
from cnncompress.pipeline.latencies import layer_times
from cnncompress.pipeline.opened import Opened, need_layers, open_network
from cnncompress.planning import choose_method, describe_methods
from cnncompress.planning.selecting import staying
from cnncompress.reporting.inspection import Inspected
from cnncompress.terminal.console import bar

POINTS = 48  # of a curve


def inspect_network(asked: NetworkAsked, timing: TimingSetting | None = None) -> tuple[Opened, list[Inspected]]:
    """A network or run and its layers, timed as `timing` says; raises as `check_weights` does.

    UsageError for the times of a run, whose chains take theirs together.
    """
    opened = open_network(asked)
    need_layers(opened, "list the layers of")
    if timing is not None and opened.run is not None:
        raise UsageError(f"{opened.weights} has chains: `profile {asked.name} --layers` tells what each takes")
    check_weights(opened.model)
    layers = inspect_layers(opened.model, opened.example())
    times = {} if timing is None else {one.layer: one.after for one in layer_times(opened, timing) or ()}
    for layer in layers:
        layer.ms = times.get(layer.layer)
    return opened, layers


def inspect_layers(
    model: nn.Module, example: torch.Tensor, energies: Sequence[float] = (0.5, 0.9, 0.99)
) -> list[Inspected]:
    """The layers of a network in the order of their calls on `example` [n, 3, h, w]; no energies on the meta device.

    What it computes beside them comes last, most MACs first.
    """
    modules = layers_of(model)
    subject = look_at(model, example)
    calls = subject.calls
    stay = _staying(subject)
    rows = []
    order = sorted(modules, key=lambda n: calls[n].order if n in calls else len(calls))
    for name in bar(order, desc="inspect", unit="layer", leave=False):
        module, spec = modules[name], spec_of(modules[name])
        reasons = describe_methods(spec)
        row = Inspected(name, str(spec), spec.params, 0, [m for m, why in reasons.items() if why is None])
        if name not in calls:
            row.methods, row.note = [], "not called as a layer"
        else:
            row.macs = calls[name].macs
            unfit = "" if row.methods else next(why for why in reasons.values() if why)
            row.note = refuse_module(module) or calls[name].kept or unfit
        if not row.note:
            row.whole = stay.get(name, "")
            row.methods += [] if row.whole or spec.depthwise else [SELECT]
            method = choose_method("auto", spec)[0]
            row.full_rank = method.full_rank(spec)[0]
            weight = dense_weight(module)
            values = None if weight.is_meta else method.spectrum(weight, spec)
            if values is not None:
                row.rank_at = {share: rank_for_energy(values, share) for share in energies}
                row.energies = energies_of(values)
        rows.append(row)
    rest = subject.cost.others
    return [*rows, *(Inspected(o.name, o.kind, o.params, o.macs, [], note=o.reason) for o in rest)]


def _staying(subject: Subject) -> dict[str, str]:
    """Why the input channels of layers stay whole; of none on the meta device, where no forward pass shows it."""
    names = [name for name, call in subject.calls.items() if not call.kept]
    if any(p.is_meta for p in subject.network.parameters()):
        return dict.fromkeys(names, "their values are not known")
    return staying(channels_of(subject), names, subject)


def energies_of(singular_values: torch.Tensor) -> tuple[tuple[int, float], ...]:
    """Some ranks, from 1 to the full one, with the share of the squared singular values [groups, n] that each keeps."""
    energy = singular_values.double().square().sum(0).cumsum(0)
    full, total = len(energy), float(energy[-1])
    ranks = sorted({round(i * (full - 1) / (POINTS - 1)) for i in range(POINTS)})
    return tuple((rank + 1, float(energy[rank]) / total) for rank in ranks) if total else ()


def rank_for_energy(singular_values: torch.Tensor, share: float) -> int:
    """The smallest rank whose squared singular values [groups, n] hold `share` of the sum, in every group."""
    energy = singular_values.square().cumsum(-1)
    reached = energy >= share * energy[..., -1:] * (1 - 1e-12)
    return int(reached.int().argmax(-1).max()) + 1
