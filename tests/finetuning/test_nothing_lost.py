"""Losses that are no numbers, and images that cannot be read: what was learnt so far stays."""

import itertools
import math

import pytest
import torch
from safetensors.torch import load_file

from cnncompress.errors import CompressError, DataError
from cnncompress.finetuning import Lessons, finetune, trainer
from tests.finetuning.test_resume import interrupt_at, raise_interrupt
from tests.finetuning.toy import Toy, assert_same, history_of, network, settings, state_of, tune


class Spoilt(Toy):
    """Gives images that are no numbers from item number `first` (from 1 on) of epoch 2, `count` batches of them."""

    def __init__(self, first, count):
        super().__init__()
        self.first, self.left, self.seen = first, 8 * count, 0

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        if self.epoch == 2:
            self.seen += 1
            if self.seen >= self.first and self.left:
                self.left -= 1
                return image * math.nan, label
        return image, label


def test_a_loss_that_is_no_number_goes_back_with_half_the_rate(tmp_path, caplog):
    # The third step of epoch 2 (step 9) is spoilt: back to the start of the epoch, whose checkpoint is the last.
    spoilt, expected = network(), network()
    result = tune(tmp_path / "a", spoilt, Spoilt(17, 1))
    told = "the training loss is nan at step 9 (epoch 2): gone back to step 6 with half the learning rate, 0.01"
    assert told in caplog.text
    assert result.lr == 0.01
    assert "the training loss is nan at step 9 (epoch 2), so it went back and halved the rate" in result.note
    # The same by hand: one epoch of two, and the second at half the rate.
    assert [row["epoch"] for row in result.history] == [0, 1, 2]
    straight = tune(tmp_path / "b", expected)
    assert history_of(result)[:2] == history_of(straight)[:2]
    assert result.history[2]["lr"] == pytest.approx(straight.history[2]["lr"] / 2)
    assert all(bool(t.isfinite().all()) for t in state_of(spoilt).values())


@pytest.mark.parametrize("how", [{}, {"ema": 0.5}, {"distill": "logits", "unlabelled": True}])
def test_outputs_that_are_no_numbers_go_back_too(tmp_path, monkeypatch, how):
    """Finite weights whose answers overflow, as those of steps that were too long: seen once, after epoch 1."""
    model, calls = network(), itertools.count()

    def validated(network_, *args):
        if next(calls) != 1:
            return usual(network_, *args)
        kept = network_[9].bias.data.clone()
        network_[9].bias.data.fill_(math.nan)
        try:
            return usual(network_, *args)
        finally:
            network_[9].bias.data = kept

    usual = trainer.validated
    monkeypatch.setattr(trainer, "validated", validated)
    teacher = network() if "distill" in how else None
    lessons = Lessons(Toy(), Toy(24, seed=1), teacher)
    result = finetune(model, lessons, settings(**how), tmp_path / "checkpoints", device="cpu")
    assert "the network's outputs are not finite after epoch 1, so it went back and halved the rate" in result.note
    assert [row["epoch"] for row in result.history] == [0, 1, 2]
    assert result.lr == 0.01


def test_twice_and_then_it_stops_with_the_reason(tmp_path):
    model = network()
    start = state_of(model)
    train = Toy()
    train.images[:] = float("inf")
    with pytest.raises(CompressError, match=r"loss is nan at step 1 \(epoch 1\), and so it was before") as caught:
        tune(tmp_path, model, train)
    words = str(caught.value)
    assert "with 4 and 2 times the learning rate" in words
    assert "lower --lr (it is 0.005)" in words
    assert "\n" not in words
    assert_same(start, load_file(tmp_path / "checkpoints" / "best.safetensors"))
    last = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    assert_same(start, last["model"])


def test_a_training_that_went_back_resumes_with_half_the_rate(tmp_path):
    straight, resumed = network(), network()
    expected = tune(tmp_path / "a", straight, Spoilt(17, 1))
    train = Spoilt(17, 1)
    interrupt_at(train, 2, 24 + 11, raise_interrupt)  # after the batches up to the spoilt one, in the second attempt
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path / "b", network(), train)
    result = tune(tmp_path / "b", resumed, resume=True)
    assert_same(state_of(straight), state_of(resumed))
    assert history_of(result) == history_of(expected)
    assert (result.lr, result.note) == (expected.lr, expected.note)


def test_weights_that_are_no_numbers_are_no_state_to_go_back_to(tmp_path):
    model = network()
    train = interrupt_at(Toy(), 2, 20, lambda: model[9].bias.data.fill_(math.nan))
    result = tune(tmp_path, model, train, checkpoint_minutes=0)
    assert "went back" in result.note
    assert math.isfinite(result.last.loss)
    assert all(bool(t.isfinite().all()) for t in state_of(model).values())


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named_and_nothing_is_lost(tmp_path, workers):
    straight, resumed = network(), network()
    tune(tmp_path / "a", straight, epochs=1)
    train = Toy()

    def broken(epoch, index):
        if epoch == 1 and index == 7:
            raise OSError("the file ends too early")

    train.on_item = broken
    with pytest.raises(DataError, match="training image 7 cannot be read: the file ends too early") as caught:
        tune(tmp_path / "b", network(), train, epochs=1, workers=workers)
    assert "\n" not in str(caught.value)
    if workers == 0:  # it comes in the batch that is read
        order = torch.load(tmp_path / "b" / "checkpoints" / "last.pt", weights_only=True)
        assert order["step"] > 0
    tune(tmp_path / "b", resumed, epochs=1, resume=True)
    assert_same(state_of(straight), state_of(resumed))
