"""Plans: the chain of each layer, and the reasons of those that are kept."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from cnncompress.chains.plan import Budget, Plan
from cnncompress.chains.spec import Call, ConvSpec
from cnncompress.errors import CompressError
from cnncompress.latency.table import LatencyTable
from cnncompress.metrics import get_metric
from cnncompress.metrics.statistics import LayerStatistics
from cnncompress.names.methods import SELECT
from cnncompress.names.metrics import DEFAULT
from cnncompress.network.costs import Profile
from cnncompress.network.divergence import Answers
from cnncompress.network.layers import layers_of, refused_in_network
from cnncompress.network.selection import check_metric
from cnncompress.network.subject import Subject, look_at
from cnncompress.planning.budget import Planner
from cnncompress.planning.collection import Guide, LatencyModel, make_candidates
from cnncompress.planning.rules import (
    Choice,
    Kept,
    RankRequest,
    at_depths,
    check_pattern,
    check_rank,
    choose_method,
    normalised_once,
    plan_layer,
    select,
)
from cnncompress.planning.selecting import select_by_rank


def plan(
    model: nn.Module,
    example_input: Tensor,
    *,
    method: str = "auto",
    rank: RankRequest = 0.25,
    budget: Budget | None = None,
    metric: str = DEFAULT,
    statistics: Mapping[str, LayerStatistics] | None = None,
    layers: Sequence[str] = (),
    skip: Sequence[str] = (),
    per_layer: Mapping[str, Choice] | None = None,
    force: bool = False,
    multiple: int | None = None,
    images: Tensor | None = None,
    table: LatencyTable | None = None,
    original_ms: float | None = None,
) -> Plan:
    """Decide for every layer what it becomes.

    `method` is one decomposition, `NAME[:k=v,...]`, or with a budget several to choose from, joined by `+`.
    `example_input` [n, c, h, w] shows the network's input (its first image is used). `rank` is a whole number or a
    fraction of each layer's full rank. `per_layer` maps patterns to other choices; the first that matches counts.
    `layers` and `skip` are patterns of the names of those that may change, all by default, and of those that may not.
    `metric` is the one that errors are measured in. `force` takes a chain even where it costs more than the layer.

    With a `budget`, methods and ranks are those of the most accurate network within it, as far as the metric can tell;
    `rank` then does not count. `statistics` are those of the metric, ranks are multiples of `multiple` (None: what
    suits processors, layer by layer), and on
    calibration `images` [n, 3, h, w] the prediction of each layer is checked (they also give every chain a bias, which
    a later correction needs). A budget of latency takes the times of `table`, and the milliseconds of the whole network
    in its setting, `original_ms`.

    Raises UsageError for requests that make no sense, and for a budget that no plan meets.
    """
    get_metric(metric)
    subject = look_at(model, example_input)
    choices, reasons = choices_of(subject, Choice(method, rank), per_layer or {}, layers, skip)
    reasons |= reasons_of(subject.cost)
    if budget is None:
        result = plan_by_rank(choices, subject, metric, force, images is not None)
    else:
        guide = Guide(metric, statistics or {}, None if images is None else Answers(model, images))
        times = None if table is None or original_ms is None else LatencyModel(table, original_ms)
        result = Planner(make_candidates(subject, choices, guide, times, multiple=multiple)).plan(budget)
    result.input_shape = tuple(example_input.shape[1:])
    return with_reasons(result, reasons, subject.calls)


def choices_of(
    subject: Subject,
    default: Choice,
    per_layer: Mapping[str, Choice],
    layers: Sequence[str] = (),
    skip: Sequence[str] = (),
) -> tuple[dict[str, Choice], dict[str, str]]:
    """The choice for every layer that may change, and the reason of each other layer.

    Both in the order of the network. UsageError for patterns, methods and ranks that make no sense, CompressError for
    a network whose forward pass calls no layer.
    """
    if not subject.calls:
        name = type(subject.network).__name__
        raise CompressError(
            f"the forward pass of {name} calls no convolution or linear layer: nothing can be decomposed"
        )
    for choice in (default, *per_layer.values()):
        check_rank(choice.rank)
        for method in choice.methods:
            if method == SELECT:
                continue
            choose_method(method, ConvSpec(1, 1))
    modules, calls = layers_of(subject.network), subject.calls
    for pattern in per_layer:
        check_pattern(pattern, list(modules), "pattern")
    left_out = select(modules, layers, skip)
    refused = refused_in_network(modules, calls)
    choices, reasons = {}, {}
    for name in sorted(modules, key=lambda n: calls[n].order if n in calls else len(calls)):
        reason = refused.get(name) or left_out.get(name)
        if reason is None:
            matching = (c for pattern, c in per_layer.items() if fnmatch.fnmatchcase(name, pattern))
            choices[name] = next(matching, default)
        else:
            reasons[name] = reason
    return normalised_once(at_depths(choices, calls), subject.network), reasons


def reasons_of(cost: Profile) -> dict[str, str]:
    """Why what a network computes beside its layers stays, by the names of modules."""
    whole = max(1, cost.total_macs)
    return {o.name: f"{o.reason} ({100 * o.macs / whole:.1f} % of the MACs)" for o in cost.others}


def with_reasons(plan: Plan, reasons: Mapping[str, str], calls: Mapping[str, Call]) -> Plan:
    """The plan, with the layers that no plan may change among those it keeps, in the order of the network."""
    kept = {**plan.kept, **reasons}
    order = sorted(kept, key=lambda n: calls[n].order if n in calls else len(calls))
    plan.kept = {name: kept[name] for name in order}
    return plan


def plan_by_rank(choices: Mapping[str, Choice], subject: Subject, metric: str, force: bool, corrected: bool) -> Plan:
    """Every layer at the rank asked for; what replaces layers whose outputs are to be `corrected` has a bias."""
    centred = corrected or get_metric(metric).centred
    selecting = {name: choice for name, choice in choices.items() if choice.method == SELECT}
    if selecting:
        check_metric(metric)
    result = dataclasses.replace(select_by_rank(subject, selecting, centred), metric=metric)
    for name, choice in choices.items():
        if name in selecting:
            continue
        decision = plan_layer(subject.calls[name], choice, force, centred)
        if isinstance(decision, Kept):
            result.kept[name] = decision.reason
        else:
            result.layers[name] = decision
    return result
