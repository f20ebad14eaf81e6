"""A compression in memory: of a network and images that are at hand."""

from __future__ import annotations

from torch import Tensor

from cnncompress.chains.plan import Budget
from cnncompress.latency.setting import TimingSetting
from cnncompress.names.metrics import GUIDED
from cnncompress.network.compressed import Compressed
from cnncompress.network.memory_format import memory_format_of
from cnncompress.network.subject import look_at
from cnncompress.pipeline.asked import FitAsked, LayersAsked
from cnncompress.pipeline.calibration import Calibration, few, left_out_of, with_gradients
from cnncompress.pipeline.fit import answers_of, fit
from cnncompress.pipeline.guard import Guard
from cnncompress.planning import (
    Guide,
    Planner,
    choices_of,
    in_need_of_statistics,
    make_candidates,
    reasons_of,
    selecting,
    with_reasons,
)
from cnncompress.statistics import collect_statistics
from cnncompress.terminal.console import Steps


def compress_network(
    original: Compressed, images: Tensor, budget: Budget, asked: LayersAsked, seed: int, allow_slower: bool = False
) -> Compressed:
    """The network planned within a budget and corrected in network order on `images` [n, c, H, W].

    It stays in its memory format, in which it takes no longer than before unless it is to be `allow_slower`.
    """
    network = original.network
    subject = look_at(network, images[:1], original.provenance)
    choices, reasons = choices_of(subject, *asked.rules(seed), asked.layers, asked.skip)
    names = list(choices)
    how, _ = with_gradients(FitAsked(GUIDED, "refit", seed=seed, metric_assumed=True), network, images[:1])
    free = selecting(choices, subject, how.metric)
    apart = left_out_of(range(len(images))) if free and few(len(images), subject.calls) else []
    seen = images[[i for i in range(len(images)) if i not in apart]] if apart else images
    statistics = collect_statistics(
        network, [seen], how.metric, layers=in_need_of_statistics(names, subject), seed=seed
    )
    calibration = Calibration(statistics, images, unseen=images[apart] if apart else None)
    guide = Guide(how.metric, statistics, answers_of(subject, calibration))
    candidates, own = make_candidates(subject, choices, guide, multiple=asked.multiple), memory_format_of(network)
    guard = Guard(candidates, {own: network}, TimingSetting(), own, Steps())
    plan = Planner(candidates).plan(budget) if allow_slower else guard.plan(budget)
    plan.input_shape = tuple(images.shape[1:])
    plan = with_reasons(plan, reasons | reasons_of(subject.cost), subject.calls)
    return fit(subject, plan, calibration, how, names, Steps()).made
