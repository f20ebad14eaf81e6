"""What every layer of a network may become, with costs and errors: all that a budget chooses from."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from cnncompress.chains.plan import Plan
from cnncompress.decompositions.base import DEPTHWISE
from cnncompress.latency.table import LatencyTable
from cnncompress.latency.wanted import Wanted
from cnncompress.maths.linalg import check_finite
from cnncompress.metrics import get_metric, layer_metrics
from cnncompress.metrics.statistics import LayerStatistics
from cnncompress.names.methods import SELECT
from cnncompress.names.metrics import DEFAULT
from cnncompress.network.channels import Channels
from cnncompress.network.divergence import Answers
from cnncompress.network.kinds import dense_weight
from cnncompress.network.subject import Subject
from cnncompress.network.widths import channels_of
from cnncompress.planning.candidates import Common, Layer, make_layer, methods_of
from cnncompress.planning.cuts import Cut, make_cuts
from cnncompress.planning.rules import Choice, Kept
from cnncompress.planning.selecting import WHOLE, selecting, staying
from cnncompress.terminal.console import bar

T = TypeVar("T")


@dataclass(frozen=True)
class Guide:
    """What errors are told by: a metric, its statistics by layer, and answers that its predictions are checked with.

    Chains have a bias where the metric is centred, and where there are answers, as a correction then follows.
    """

    metric: str = DEFAULT
    statistics: Mapping[str, LayerStatistics] = field(default_factory=dict)
    answers: Answers | None = None

    @property
    def centred(self) -> bool:
        """True where every chain has a bias."""
        return get_metric(self.metric).centred or self.answers is not None


@dataclass(frozen=True)
class LatencyModel:
    """Milliseconds of layers, of chains and of the whole network, for budgets of latency.

    `original_ms` is what the network takes in the setting of the `table`. Shares are of `reference_ms`, what it takes
    in its fastest setting; None is the same. `clock` measures the whole network after a plan. Chains are measured in
    some `seconds`, or little more.
    """

    table: LatencyTable
    original_ms: float
    reference_ms: float | None = None
    clock: Callable[[Plan], float] | None = None
    seconds: float = math.inf


@dataclass(frozen=True)
class Candidates:
    """Layers that may change with all they may become, and those that cannot, with the reason.

    `cuts` tell how many of the channels between layers may be left, `whole` why a layer that might take fewer takes
    all. `measured` has the divergences that were measured
    so far, by layer, family and place of the rank, or by cut and place.
    """

    subject: Subject
    layers: tuple[Layer, ...]
    cuts: tuple[Cut, ...]
    kept: Mapping[str, str]
    guide: Guide
    times: LatencyModel | None = None
    progress: bool = True
    whole: Mapping[str, str] = field(default_factory=dict)
    measured: dict[tuple[str, int, int], float] = field(default_factory=dict, repr=False)

    @property
    def wanted(self) -> list[Wanted]:
        """All chains whose times a budget of latency asks for."""
        return [Wanted(x.call, family.method, family.ranks) for x in self.layers for family in x.families]

    @property
    def totals(self) -> dict[str, float]:
        """What the network costs in the setting that is planned for."""
        cost = self.subject.cost
        totals = {"macs": float(cost.total_macs), "params": float(cost.params)}
        return totals if self.times is None else {**totals, "latency": self.times.original_ms}

    @property
    def references(self) -> dict[str, float]:
        """The costs that a budget is a share of."""
        other = None if self.times is None else self.times.reference_ms
        return self.totals if other is None else {**self.totals, "latency": other}

    def bar(self, items: Collection[T], what: str) -> Iterable[T]:
        """The items, with a progress bar where one is wanted."""
        return bar(items, progress=self.progress, desc=what, unit="layer", leave=False)


def in_need_of_statistics(choices: Collection[str], subject: Subject) -> list[str]:
    """The layers whose errors are measured in a metric: a depthwise convolution takes no method."""
    return [name for name in choices if not subject.calls[name].spec.depthwise]


def make_candidates(
    subject: Subject,
    choices: Mapping[str, Choice],
    guide: Guide,
    times: LatencyModel | None = None,
    *,
    multiple: int | None = None,
    progress: bool = True,
) -> Candidates:
    """Try methods and ranks on the layers of `choices`, in their order; the ranks of the choices do not count.

    Ranks are multiples of `multiple`; None is what suits processors, layer by layer. CompressError for weights that
    are not finite, UsageError for missing statistics.
    """
    layers: list[Layer] = []
    kept: dict[str, str] = {}
    result = Candidates(subject, (), (), kept, guide, times, progress)
    free = selecting(choices, subject, guide.metric)
    groups = channels_of(subject) if free else Channels((), {})
    whole = {name: WHOLE.format(why) for name, why in staying(groups, free, subject).items()}
    cuts = make_cuts(subject, groups.groups, free, guide.metric, guide.statistics, multiple)
    narrowing = {name for cut in cuts for name in cut.group.modules}
    for name in result.bar(choices, "candidates"):
        module, call = subject.network.get_submodule(name), subject.calls[name]
        weight = dense_weight(module).cpu()
        check_finite(weight, name)
        layer: Layer | Kept = Kept(DEPTHWISE)
        if not call.spec.depthwise:
            methods = methods_of(choices[name], call.spec)
            metrics = layer_metrics(guide.metric, call.spec, guide.statistics.get(name))
            layer = make_layer(name, call, weight, methods, metrics, Common(guide.centred, multiple))
        if not isinstance(layer, Kept):
            layers.append(layer)
        elif name in narrowing:
            layers.append(Layer(name, call, [], guide.centred))
        if isinstance(layer, Kept):
            alone = choices[name].method == SELECT and name in whole
            kept[name] = whole[name] if alone else with_channels(layer.reason, whole.get(name))
    return replace(result, layers=tuple(layers), cuts=tuple(cuts), whole=whole)


def with_channels(reason: str, whole: str | None) -> str:
    """Why a layer stays, with why it takes all its channels."""
    return f"{reason}; {whole}" if whole else reason
