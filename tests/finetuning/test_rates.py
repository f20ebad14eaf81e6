"""The learning rate: how it runs over the steps, and how it is found."""

import math

import pytest
import torch

from cnncompress.finetuning.rates import FIRST_RATES, RATIO, choose, rate_at, search, warm_up
from tests.finetuning.test_resume import interrupt_at, raise_interrupt
from tests.finetuning.toy import Toy, assert_same, history_of, network, state_of, tune


def test_warm_up_and_cosine_by_hand():
    # A tenth of 20 steps: 1/3 and 2/3 of the peak, then 18 steps of the cosine.
    assert warm_up(20) == 2
    expected = [0.1, 0.2, 0.3, 0.15 * (1 + math.cos(math.pi / 18)), 0.15]
    assert [rate_at(0.3, step, 20) for step in (0, 1, 2, 3, 11)] == pytest.approx(expected)
    assert rate_at(0.3, 19, 20) == pytest.approx(0.15 * (1 + math.cos(math.pi * 17 / 18)))
    assert (warm_up(9), warm_up(10**6), rate_at(0.5, 0, 7)) == (0, 500, 0.5)


@pytest.mark.parametrize(
    ("best", "tried"),
    [(0, [-1, 0, 1]), (2, [0, 1, 2, 3]), (3, [0, 1, 2, 3]), (-2, [-3, -2, -1, 0, 1]), (-3, [-3, -2, -1, 0, 1])],
)
def test_the_search_stops_behind_the_least(best, tried):
    """A parabola over the logarithm of the rate."""
    losses = search(lambda rate: (math.log(rate / 0.001) / math.log(RATIO) - best) ** 2, 0.001, math.inf)
    assert list(losses) == pytest.approx([0.001 * RATIO**power for power in tried])


def test_smaller_rates_are_tried_where_larger_ones_bring_nothing():
    """Two dips, of which the one of larger rates is above the loss before."""
    losses = {-3: 0.8, -2: 0.9, -1: 1.2, 0: 2.0, 1: 1.5, 2: 1.6}
    for before, tried in ((1.0, range(-3, 3)), (1.7, range(3))):
        found = search(lambda rate: losses[round(math.log(rate / 0.001, RATIO))], 0.001, before)
        assert list(found.values()) == [losses[power] for power in tried]


def test_a_loss_that_is_not_finite_is_none_to_choose():
    losses = search(lambda rate: math.nan if rate > 0.0005 else rate, 0.001, 1.0)
    assert choose(losses, 1.0) == pytest.approx(0.001 / RATIO**3)


@pytest.mark.parametrize(
    ("losses", "rate"),
    [
        ([0.9, 0.54, 0.5], 0.2),  # more than nine tenths of the largest fall
        ([0.9, 0.56, 0.5], 0.3),
        ([1.0, 1.1, 1.2], 0.1),  # nothing falls
        ([1.2, 1.1, math.inf], 0.1),
    ],
)
def test_the_smallest_rate_with_nine_tenths_of_the_gain(losses, rate):
    assert choose(dict(zip((0.1, 0.2, 0.3), losses, strict=True)), 1.0) == rate


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_training_finds_its_rate_tells_it_and_resumes_with_it(tmp_path, optimizer):
    straight, resumed = network(), network()
    expected = tune(tmp_path / "a", straight, lr=None, optimizer=optimizer)
    assert expected.lr >= FIRST_RATES[optimizer] * RATIO**2  # an untrained network bears much
    assert f"learning rate {expected.lr:.2g}, of 4 tried for 4 steps" in expected.note
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path / "b", network(), interrupt_at(Toy(), 2, 21, raise_interrupt), lr=None, optimizer=optimizer)
    torch.manual_seed(12345)
    result = tune(tmp_path / "b", resumed, lr=None, optimizer=optimizer, resume=True)
    assert_same(state_of(straight), state_of(resumed))
    assert (history_of(result), result.lr, result.note) == (history_of(expected), expected.lr, expected.note)


def test_the_trials_change_nothing(tmp_path):
    """The training with the rate that was found is the one with this rate given."""
    one, two = network(), network()
    found = tune(tmp_path / "a", one, lr=None)
    given = tune(tmp_path / "b", two, lr=found.lr)
    assert_same(state_of(one), state_of(two))
    assert history_of(found) == history_of(given)


def test_a_network_that_has_nothing_to_learn_gets_a_small_one(tmp_path):
    """Its labels are random, and the held ones are others; an untrained network got ten times as much above."""
    model = network(dropout=0.0)
    tune(tmp_path / "first", model, epochs=4)
    train = Toy(96, seed=3)
    train.labels = torch.randint(3, (96,), generator=torch.Generator().manual_seed(0)).tolist()
    with torch.no_grad():
        model[9].weight.zero_()  # what is best for random labels: all classes alike
        model[9].bias.zero_()
    assert tune(tmp_path / "second", model, train, lr=None).lr < 0.005


def test_trials_are_judged_by_validation_images(tmp_path):
    """A network that knows its training images by heart, of random labels: the others tell that all steps are harm."""
    train, val = Toy(32), Toy(24, seed=1)
    train.labels = torch.randint(3, (32,), generator=torch.Generator().manual_seed(0)).tolist()
    model = network(dropout=0.0)
    tune(tmp_path / "first", model, val=val, epochs=4)
    result = tune(tmp_path / "second", model, train, val, lr=None)
    assert result.lr == pytest.approx(FIRST_RATES["sgd"] / RATIO**3)
    loss = result.history[0]["val_loss"]
    assert f"loss {loss:.4g} → " in result.note  # all 24 images are within the batches that judge
