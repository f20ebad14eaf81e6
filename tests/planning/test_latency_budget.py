"""Plans within a budget of latency: from the times of chains, and from those of the whole network."""

from __future__ import annotations

import re

import pytest
import torch

from cnncompress.chains.plan import Budget
from cnncompress.chains.plan_json import plan_from_json, plan_to_json
from cnncompress.chains.spec import chain_macs
from cnncompress.errors import UsageError
from cnncompress.fitting import decompose
from cnncompress.latency import table
from cnncompress.latency.setting import TimingSetting
from cnncompress.latency.table import LatencyTable
from cnncompress.network.copying import clone
from cnncompress.network.divergence import Answers
from cnncompress.network.memory_format import memory_format_of, to_memory_format
from cnncompress.network.profile import profile
from cnncompress.network.subject import look_at
from cnncompress.planning import (
    Choice,
    Guide,
    LatencyModel,
    Planner,
    choices_of,
    make_candidates,
    network_clock,
    plan,
)
from cnncompress.planning.whole import with_random_chains
from tests.planning.networks import X
from tests.timing import took


def steady(jobs, size, setting):
    """The times of a machine that takes a millisecond for 1000 multiply-accumulates."""
    return [chain_macs(job.chain, size) / 1000 for job in jobs]


def planner_of(model, method="auto", times=None, answers=None) -> Planner:
    subject = look_at(model, X)
    choices, _ = choices_of(subject, Choice(method), {})
    return Planner(make_candidates(subject, choices, Guide(answers=answers), times, progress=False))


def test_a_budget_of_latency(model, monkeypatch):
    """On a machine that takes a millisecond for 1000 multiply-accumulates, and 20 for whatever is no layer."""
    monkeypatch.setattr(table, "measure", steady)
    original = profile(model, X).macs / 1000 + 20
    times = LatencyTable(TimingSetting(), None)
    found = plan(model, X, budget=Budget(latency=0.5), table=times, original_ms=original)
    small = profile(decompose(model, found, progress=False), X).macs / 1000 + 20
    assert found.achieved["latency"] == pytest.approx(small / original)
    assert 0.49 < small / original <= 0.5
    taken = {name: change.macs for name, change in found.layers.items()}
    assert {name: found.times[name] for name in taken} == {
        name: pytest.approx((before / 1000, after / 1000)) for name, (before, after) in taken.items()
    }
    assert all(before == after for name, (before, after) in found.times.items() if name not in taken)
    assert plan_from_json(plan_to_json(found)).times == found.times
    both = plan(model, X, budget=Budget(latency=0.5, params=0.3), table=times, original_ms=original)
    assert both.achieved["latency"] <= 0.5
    assert both.achieved["params"] <= 0.3


def test_chains_that_take_longer_in_the_network_get_less(model, monkeypatch):
    """As above, but within the network every chain needs half as long again as alone."""
    monkeypatch.setattr(table, "measure", steady)
    original, asked = profile(model, X).macs / 1000 + 20, []

    def clock(found):
        rest = profile(model, X).macs - sum(p.macs[0] for p in found.layers.values())
        asked.append((rest + 1.5 * sum(p.macs[1] for p in found.layers.values())) / 1000 + 20)
        return asked[-1]

    planner = planner_of(model, times=LatencyModel(LatencyTable(TimingSetting(), None), original, clock=clock))
    found = planner.plan(Budget(latency=0.6))
    assert len(asked) == 2  # the second one agrees
    assert asked[0] > 0.62 * original
    assert clock(found) == pytest.approx(found.achieved["latency"] * original)
    assert 0.58 < found.achieved["latency"] <= 0.6


def test_a_share_of_latency_that_is_named_as_reachable_is(model, monkeypatch):
    """Shares are of 100 ms, though the network takes less in the setting that is planned for."""
    monkeypatch.setattr(table, "measure", steady)
    original = profile(model, X).macs / 1000 + 20
    times = LatencyTable(TimingSetting(), None)
    planner = planner_of(model, "spatial-svd", LatencyModel(times, original, 2 * original))
    with pytest.raises(UsageError, match="no plan meets the budget") as raised:
        planner.plan(Budget(latency=0.01))
    share = float(re.search(r"go down to latency=([\d.]+)", str(raised.value))[1])
    assert share - 0.001 <= planner.plan(Budget(latency=share)).achieved["latency"] <= share < 0.5


@pytest.mark.slow
def test_the_same_budget_has_the_same_plan_whatever_was_asked_before(model, monkeypatch):
    """Answers correct the errors, a clock corrects the times of chains, and both depend on the plan."""
    monkeypatch.setattr(table, "measure", steady)
    original = profile(model, X).macs / 1000 + 20
    budgets = [Budget(macs=0.6), Budget(latency=0.7), Budget(latency=0.8, macs=0.5)]

    def asked(order):
        def clock(found):
            return original * found.achieved["latency"] * (1.02 + 0.02 * len(found.layers))

        times = LatencyTable(TimingSetting(), None)
        answers = Answers(model, X)
        planner = planner_of(model, "spatial-svd", LatencyModel(times, original, clock=clock), answers)
        with pytest.raises(UsageError):
            planner.plan(Budget(macs=0.001))
        return {str(budgets[i]): planner.plan(budgets[i]) for i in order}

    assert asked([0, 1, 2]) == asked([2, 1, 0, 1, 2])


@pytest.mark.few(1)
@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_random_chains_stand_for_the_plan(model, memory_format):
    model = to_memory_format(clone(model), memory_format)
    found = plan(model, X, budget=Budget(macs=0.5))
    small = with_random_chains(model, found)
    assert profile(small, X).total_macs == profile(decompose(model, found, progress=False), X).total_macs
    assert memory_format_of(small) == memory_format
    with torch.no_grad():
        y = small(X)
    assert torch.isfinite(y).all()
    assert float(y.abs().max()) > 1e-6  # no denormal numbers, which take longer
    assert network_clock(model, X, 100.0)(found) > 0


def test_the_clock_runs_each_network_in_its_own_memory_format(model, monkeypatch):
    def taken(models, example, setting, rounds, quickly):
        formats = {name: memory_format_of(network) for name, network in models.items()}
        assert formats == {"original": "contiguous", "planned": "channels_last"}
        times = {"original": 2.0, "planned": 1.5}
        return {name: took(9.0, p10=times[name]) for name in models}

    monkeypatch.setattr("cnncompress.planning.whole.latency", taken)
    found = plan(model, X, budget=Budget(macs=0.5))
    assert network_clock(model, X, 100.0, memory_format="channels_last")(found) == pytest.approx(75.0)


def in_network(model, found, scale, rest):
    """Milliseconds of a network after a plan whose every layer and chain takes `scale` ms for 1000 MACs."""
    others = profile(model, X).macs - sum(p.macs[0] for p in found.layers.values())
    return scale * (others + sum(p.macs[1] for p in found.layers.values())) / 1000 + rest


def test_layers_that_were_not_seen_in_the_network_may_take_more_of_its_time(model, monkeypatch):
    """Alone they seem to take a third of it, and in truth they take all but a hundredth: one look is enough."""
    monkeypatch.setattr(table, "measure", steady)
    layers, asked = profile(model, X).macs / 1000, []
    original = 3.03 * layers

    def clock(found):
        asked.append(in_network(model, found, 3.0, 0.03 * layers))
        return asked[-1]

    times = LatencyTable(TimingSetting(), None)
    times.seen = False
    planner = planner_of(model, times=LatencyModel(times, original, clock=clock))
    found = planner.plan(Budget(latency=0.8))
    assert len(asked) == 2
    assert asked[0] < 0.65 * original
    assert asked[1] == pytest.approx(found.achieved["latency"] * original, rel=0.02)
    assert 0.77 < found.achieved["latency"] <= 0.8


def test_chains_whose_error_grows_with_their_rank_still_use_the_budget(model, monkeypatch):
    """In the network a chain takes (1.4 x)² times what it takes alone, x its share of the layer's operations.

    So what plans take in truth rises with the third power of what they are predicted to take: correcting the prediction
    by what was measured alone leads from far below the budget to far above it, and back.
    """
    monkeypatch.setattr(table, "measure", steady)
    original = profile(model, X).macs / 1000 + 20

    def clock(found):
        changes = [(one.macs[0] / 1000, one.macs[1] / 1000) for one in found.layers.values()]
        return original + sum(small * (1.4 * small / whole) ** 2 - whole for whole, small in changes)

    planner = planner_of(model, times=LatencyModel(LatencyTable(TimingSetting(), None), original, clock=clock))
    found = planner.plan(Budget(latency=0.7))
    assert clock(found) == pytest.approx(found.achieved["latency"] * original, rel=0.03)
    assert 0.63 < clock(found) / original <= 0.7 * 1.02


@pytest.mark.slow
def test_of_plans_that_are_never_as_predicted_the_best_measured_one_is_taken(model, monkeypatch):
    """Every second measurement is a third above the prediction, the others a third below: none confirms another."""
    monkeypatch.setattr(table, "measure", steady)
    original, asked = profile(model, X).macs / 1000 + 20, []

    def clock(found):
        factor = 4 / 3 if len(asked) % 2 == 0 else 2 / 3
        asked.append((sum(found.rises.values()), factor * found.achieved["latency"]))
        return asked[-1][1] * original

    planner = planner_of(model, times=LatencyModel(LatencyTable(TimingSetting(), None), original, clock=clock))
    found = planner.plan(Budget(latency=0.6))
    within = [one for one in asked if one[1] <= 0.6]
    assert within
    assert (sum(found.rises.values()), found.achieved["latency"]) == pytest.approx(min(within))


@pytest.mark.slow
def test_one_slow_measurement_does_not_end_the_search(model, monkeypatch):
    """The first plan takes 1.5 times what is predicted, which leaves no plan; the others take what they are."""
    monkeypatch.setattr(table, "measure", steady)
    original, asked = profile(model, X).macs / 1000 + 20, []

    def clock(found):
        truth = profile(decompose(model, found, progress=False), X).macs / 1000 + 20
        asked.append(truth * (1 if asked else 1.5))
        return asked[-1]

    times = LatencyTable(TimingSetting(), None)
    free = planner_of(model, times=LatencyModel(times, original))
    with pytest.raises(UsageError) as raised:
        free.plan(Budget(latency=0.01))
    least = float(re.search(r"go down to latency=([\d.]+)", str(raised.value))[1])
    found = planner_of(model, times=LatencyModel(times, original, clock=clock)).plan(Budget(latency=1.1 * least))
    assert len(asked) > 1
    assert clock(found) / original <= 1.1 * least * 1.02
