"""A compression in memory: of a network and images that are at hand."""

from __future__ import annotations

from torch import Tensor, nn

from cnncompress.chains.plan import Budget
from cnncompress.errors import NoGradientError
from cnncompress.names.metrics import GUIDED, OF_INPUTS
from cnncompress.network.compressed import Compressed, compressed
from cnncompress.network.divergence import batches
from cnncompress.network.subject import look_at
from cnncompress.pipeline.asked import FitAsked, LayersAsked
from cnncompress.pipeline.calibration import Calibration
from cnncompress.pipeline.fit import answers_of, fit
from cnncompress.planning import Guide, Planner, choices_of, make_candidates, reasons_of, with_reasons
from cnncompress.statistics import collect_statistics
from cnncompress.terminal.console import LOG, Steps


def compress_network(network: nn.Module, images: Tensor, budget: Budget, asked: LayersAsked, seed: int) -> Compressed:
    """The network planned within a budget and corrected in network order on `images` [n, c, H, W]."""
    subject = look_at(network, images[:1])
    choices, reasons = choices_of(subject, *asked.rules(0), asked.layers, asked.skip)
    names = list(choices)
    metric, calibration = calibrate_in_memory(network, images, names, seed)
    guide = Guide(metric, calibration.statistics, answers_of(subject, calibration))
    plan = Planner(make_candidates(subject, choices, guide, multiple=asked.multiple)).plan(budget)
    plan.input_shape = tuple(images.shape[1:])
    plan = with_reasons(plan, reasons | reasons_of(subject.cost), subject.calls)
    how = FitAsked(metric, "refit", seed=seed)
    return compressed(fit(subject, plan, calibration, how, names, Steps()).network)


def calibrate_in_memory(network: nn.Module, images: Tensor, layers: list[str], seed: int) -> tuple[str, Calibration]:
    """The metric that plans are made in, and its statistics: another one where no gradient reaches the layers."""
    metric = GUIDED
    try:
        found = collect_statistics(network, batches(images), metric, layers=layers, seed=seed)
    except NoGradientError as error:
        metric = OF_INPUTS
        LOG.warning(f"the metric is {metric}, as {error}")
        found = collect_statistics(network, batches(images), metric, layers=layers, seed=seed)
    return metric, Calibration(found, images)
