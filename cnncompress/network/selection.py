"""Which channels of a group stay, and the weights of the layers that take them: least squares in a metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from cnncompress.chains.plan import Plan
from cnncompress.chains.spec import ConvSpec
from cnncompress.errors import UnsupportedLayerError, UsageError
from cnncompress.maths.channels import inputs_of
from cnncompress.maths.elimination import Problem, eliminate, refit
from cnncompress.metrics import Metric, get_metric, layer_metrics, relative_error
from cnncompress.metrics.statistics import LayerStatistics
from cnncompress.network.channels import Group, channel_groups
from cnncompress.network.copying import clone
from cnncompress.network.graph import trace_graph
from cnncompress.network.kinds import dense_weight, kind_of, spec_of
from cnncompress.network.narrow import Chosen, chosen_of, narrow

MOST_INPUTS = 4608  # of a layer at a position: the elimination of more takes minutes
Outputs = Mapping[str, Tensor]  # the channels that stay, by the layer that gives them


@dataclass(frozen=True)
class Selected:
    """A narrowed network, which channels of its modules stayed, and the errors of the layers that take fewer.

    `errors` are relative, in the metric; `rises` in nats an image where the metric is in nats.
    """

    network: nn.Module
    plan: Plan
    chosen: Mapping[str, Chosen] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    rises: dict[str, float] = field(default_factory=dict)

    def statistics(self, of: Mapping[str, LayerStatistics]) -> dict[str, LayerStatistics]:
        """The statistics of the layers as they are now, of those before."""
        narrowed = self.plan.narrowed
        return {n: _left(s, narrowed[n].spec, self.chosen[n]) if n in narrowed else s for n, s in of.items()}


def check_metric(metric: str) -> None:
    """UsageError for a metric in which least squares in the inputs have no closed form."""
    if "sensitivity" in get_metric(metric).needs:
        raise UsageError(f"select takes a metric of second moments, not {metric}: give --metric kronecker")


def elimination(
    group: Group, network: nn.Module, metric: str, statistics: Mapping[str, LayerStatistics], outputs: Outputs
) -> tuple[Tensor, Tensor]:
    """The channels of a group in the order of their use, [C], and the metric's squared error with the first K, [C + 1].

    `outputs` has the channels of its takers that stay, where not all do.
    """
    problems = []
    for name in group.takers:
        module = network.get_submodule(name)
        form = layer_metrics(metric, spec_of(module), statistics.get(name))[0]
        problems.append(problem_of(dense_weight(module).cpu(), form, outputs.get(name)))
    return eliminate(problems, group.channels)


def problem_of(weight: Tensor, metric: Metric, outputs: Tensor | None = None) -> Problem:
    """The problem of a layer's weight [F, C, kh, kw] in a separable metric; `outputs` are those that count."""
    rows = weight.double().flatten(1)
    if outputs is not None:
        rows, metric = rows[outputs], replace(metric, gamma=_part(metric.gamma, outputs))
    root, sigma = metric.left_root, metric.sigma
    moment = torch.eye(rows.shape[1], dtype=torch.float64) if sigma is None else sigma.dense
    if moment is None:
        raise UnsupportedLayerError(f"it takes {rows.shape[1]} inputs at a position, too many to choose from")
    return Problem(rows if root is None else root.mT @ rows, moment.double())


def select(
    network: nn.Module,
    plan: Plan,
    statistics: Mapping[str, LayerStatistics],
    orders: Mapping[Group, Tensor] | None = None,
) -> Selected:
    """A copy of `network`, narrowed as `plan` says, every layer that takes fewer channels refitted in its metric.

    What the error does to the mean output goes into the bias. A network that the plan does not narrow comes back as it
    is, and one on the meta device is narrowed in shape only. `orders` are those of `elimination`, of all the groups
    that change, where they are known; the copy then shares what stays with the network. UnsupportedLayerError for a
    plan that no choice of channels makes.
    """
    if not plan.narrowed:
        return Selected(network, plan)
    if any(weight.is_meta for weight in network.parameters()):
        return Selected(narrow(clone(network), plan), plan, chosen_of(plan, {}))
    check_metric(plan.metric)
    groups = tuple(orders) if orders else channel_groups(trace_graph(network), network).groups
    counts = {group.name: _count(group, plan) for group in groups}
    changing = [group for group in groups if counts[group.name] < group.channels]
    outputs: dict[str, Tensor] = {}
    kept: dict[Group, Tensor] = {}
    for group in reversed(changing):
        known = (orders or {}).get(group)
        order = elimination(group, network, plan.metric, statistics, outputs)[0] if known is None else known
        kept[group] = order[: counts[group.name]].sort().values
        outputs |= dict.fromkeys(group.makers, kept[group])
    chosen = chosen_of(plan, kept)
    shared = {id(p): p for p in network.parameters()} if orders else {}
    selected = Selected(narrow(clone(network, shared), plan, chosen), plan, chosen)
    for name in dict.fromkeys(name for group in changing for name in group.takers):
        _refit(name, network.get_submodule(name), selected, statistics.get(name))
    return selected


def _count(group: Group, plan: Plan) -> int:
    """The channels of a group that a plan leaves."""
    counts = {plan.narrowed[n].now.out_channels if n in plan.narrowed else group.channels for n in group.makers}
    count = min(counts)
    widths = {n: plan.narrowed[n].now.in_channels for n in group.takers if n in plan.narrowed}
    takers = all(widths.get(name, group.channels * each) == count * each for name, each in group.takers.items())
    numbers = {n: plan.channels.get(n, group.channels) for n in group.between if n not in plan.narrowed}
    if len(counts) > 1 or not takers or any(number != count for number in numbers.values()):
        raise UnsupportedLayerError(f"the plan leaves {', '.join(group.modules)} with channels that do not fit")
    return count


def _refit(name: str, module: nn.Module, selected: Selected, statistics: LayerStatistics | None) -> None:
    """Give a layer that takes fewer channels the weights that suit them, and tell its error."""
    chosen, small, kind = selected.chosen[name], selected.network.get_submodule(name), kind_of(module)
    weight = dense_weight(module).cpu()[chosen.outputs].double()
    metric = layer_metrics(selected.plan.metric, spec_of(module), statistics)[0]
    metric = replace(metric, gamma=_part(metric.gamma, chosen.outputs))
    inputs = inputs_of(chosen.inputs, weight[0, 0].numel())
    nearest = torch.zeros_like(weight).flatten(1)
    nearest[:, inputs] = refit(problem_of(weight, replace(metric, gamma=None)), inputs)
    nearest = nearest.view_as(weight)
    parameter, bias = kind.parameter(small), kind.bias(small)
    parameter.data.copy_(kind.laid_out(small, nearest[:, chosen.inputs]))
    if bias is not None and metric.mean is not None:
        bias.data.add_((weight - nearest).flatten(1) @ metric.mean.double())
    selected.errors[name] = relative_error([metric], weight, nearest)
    if metric.nats:
        selected.rises[name] = metric.squared_error(weight - nearest) / 2


def _part(matrix: Tensor | None, index: Tensor) -> Tensor | None:
    return None if matrix is None else matrix[index][:, index]


def _left(of: LayerStatistics, spec: ConvSpec, chosen: Chosen) -> LayerStatistics:
    """The statistics of a layer of which only some channels are left."""
    if spec.depthwise:
        mean, moment = of.mean[chosen.outputs], None if of.moment is None else of.moment[chosen.outputs]
    else:
        inputs = inputs_of(chosen.inputs, of.mean.shape[1] // spec.in_channels)
        mean, moment = of.mean[:, inputs], None if of.moment is None else of.moment[:, inputs][:, :, inputs]
    gradient = _part(of.gradient, chosen.outputs)
    return replace(of, mean=mean, moment=moment, samples=None, gradient=gradient, sensitivity=None)
