"""A compression in memory: of a network and images that are at hand."""

from __future__ import annotations

from torch import Tensor, nn

from cnncompress.chains.plan import Budget
from cnncompress.names.metrics import GUIDED
from cnncompress.network.compressed import Compressed, compressed
from cnncompress.network.divergence import batches
from cnncompress.network.subject import look_at
from cnncompress.pipeline.asked import FitAsked, LayersAsked
from cnncompress.pipeline.calibration import Calibration, with_gradients
from cnncompress.pipeline.fit import answers_of, fit
from cnncompress.planning import Guide, Planner, choices_of, make_candidates, reasons_of, with_reasons
from cnncompress.statistics import collect_statistics
from cnncompress.terminal.console import Steps


def compress_network(network: nn.Module, images: Tensor, budget: Budget, asked: LayersAsked, seed: int) -> Compressed:
    """The network planned within a budget and corrected in network order on `images` [n, c, H, W]."""
    subject = look_at(network, images[:1])
    choices, reasons = choices_of(subject, *asked.rules(seed), asked.layers, asked.skip)
    names = list(choices)
    how, _ = with_gradients(FitAsked(GUIDED, "refit", seed=seed, metric_assumed=True), network, images[:1])
    statistics = collect_statistics(network, batches(images), how.metric, layers=names, seed=seed)
    calibration = Calibration(statistics, images)
    guide = Guide(how.metric, statistics, answers_of(subject, calibration))
    plan = Planner(make_candidates(subject, choices, guide, multiple=asked.multiple)).plan(budget)
    plan.input_shape = tuple(images.shape[1:])
    plan = with_reasons(plan, reasons | reasons_of(subject.cost), subject.calls)
    return compressed(fit(subject, plan, calibration, how, names, Steps()).network)
