import dataclasses
import os
import signal

import pytest
import torch
from torch import nn

from cnncompress.errors import RunError, UsageError
from cnncompress.finetuning.checkpoints import Checkpoints
from tests.finetuning.toy import (
    Toy,
    assert_same,
    history_of,
    linear_chain,
    network,
    state_of,
    tune,
)


def interrupt_at(train, epoch, count, act):
    """Let `train` call `act` at item number `count` (from 1 on) of an epoch."""
    seen = []

    def on_item(now, index):
        if now == epoch:
            seen.append(index)
            if len(seen) == count:
                act()

    train.on_item = on_item
    return train


def raise_interrupt():
    raise KeyboardInterrupt


def send_interrupt():
    signal.raise_signal(signal.SIGINT)  # to this thread, which sees it at once


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(
    ("epoch", "count", "position"),
    [(2, 21, (2, 2)), (1, 1, (1, 0)), (2, 1, (2, 0))],
    ids=["within an epoch", "first step", "epoch boundary"],
)
def test_resuming_gives_the_bits_of_an_uninterrupted_training(tmp_path, optimizer, epoch, count, position):
    straight, broken = network(), network()
    expected = tune(tmp_path / "a", straight, epochs=3, optimizer=optimizer)
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path / "b", broken, interrupt_at(Toy(), epoch, count, raise_interrupt), epochs=3, optimizer=optimizer)
    state = torch.load(tmp_path / "b" / "checkpoints" / "last.pt", weights_only=True)
    assert (state["epoch"], state["step"]) == position
    resumed = network()
    torch.manual_seed(12345)
    result = tune(tmp_path / "b", resumed, epochs=3, optimizer=optimizer, resume=True)
    assert_same(state_of(straight), state_of(resumed))
    assert history_of(result) == history_of(expected)
    assert dataclasses.replace(result, history=[]) == dataclasses.replace(expected, history=[])
    a, b = (torch.load(tmp_path / x / "checkpoints" / "last.pt", weights_only=True) for x in "ab")
    assert_same(a["model"], b["model"])


def test_resuming_after_an_interrupted_validation(tmp_path):
    straight, resumed = network(), network()
    tune(tmp_path / "a", straight)
    val = Toy(24, seed=1)
    calls = []

    def on_item(epoch, index):
        calls.append(index)
        if len(calls) == 1 + 24 + 5:  # the example, the start, and then the first epoch
            raise KeyboardInterrupt

    val.on_item = on_item
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path / "b", network(), val=val)
    state = torch.load(tmp_path / "b" / "checkpoints" / "last.pt", weights_only=True)
    assert (state["epoch"], state["step"]) == (1, 6)
    tune(tmp_path / "b", resumed, resume=True)
    assert_same(state_of(straight), state_of(resumed))


class Signalling(nn.Module):
    """Sends Ctrl-C to this process in its `n`-th forward pass in train mode."""

    def __init__(self, n):
        super().__init__()
        self.n = n

    def forward(self, x):
        if self.training:
            self.n -= 1
            if self.n == 0:
                send_interrupt()
        return x


def test_ctrl_c_within_a_step_waits_for_its_end(tmp_path):
    straight, broken, resumed = network(), network(), network()
    tune(tmp_path / "a", straight)
    broken[2] = nn.Sequential(nn.ReLU(), Signalling(3))
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path / "b", broken)
    assert signal.getsignal(signal.SIGINT) is handler
    state = torch.load(tmp_path / "b" / "checkpoints" / "last.pt", weights_only=True)
    assert (state["epoch"], state["step"]) == (1, 3)
    tune(tmp_path / "b", resumed, resume=True)
    assert_same(state_of(straight), state_of(resumed))


def test_ctrl_c_while_an_image_is_read(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path, network(), interrupt_at(Toy(), 1, 20, send_interrupt))
    state = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    assert (state["epoch"], state["step"]) == (1, 2)


def test_checkpoints_within_an_epoch(tmp_path):
    positions = []
    train = Toy()

    def on_item(epoch, index):
        state = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
        positions.append((state["epoch"], state["step"]))

    train.on_item = on_item
    tune(tmp_path, network(), train, epochs=1, checkpoint_minutes=0)
    assert positions[::8] == [(1, step) for step in range(6)]


def test_resuming_a_finished_training_gives_its_result_again(tmp_path):
    first, again = network(), network()
    expected = tune(tmp_path, first)
    assert tune(tmp_path, again, resume=True) == expected
    assert_same(state_of(first), state_of(again))


@pytest.mark.parametrize(
    ("key", "value", "then"),
    [("epochs", 3, 2), ("lr", 0.03, 0.02), ("batch_size", 4, 8), ("seed", 6, 5), ("schedule", "upper", "all")],
)
def test_resuming_with_other_settings_is_refused(tmp_path, key, value, then):
    tune(tmp_path, network())
    before = (tmp_path / "checkpoints" / "last.pt").read_bytes()
    with pytest.raises(UsageError, match=rf"{key} was {then}, now {value}"):
        tune(tmp_path, network(), resume=True, **{key: value})
    assert (tmp_path / "checkpoints" / "last.pt").read_bytes() == before


def test_resuming_with_other_images_or_another_network_is_refused(tmp_path):
    tune(tmp_path, network())
    with pytest.raises(UsageError, match="training images was 48, now 40"):
        tune(tmp_path, network(), Toy(40), resume=True)
    other = network()
    other[9] = linear_chain(128, 3, 1)
    with pytest.raises(RunError, match="does not fit this network"):
        tune(tmp_path, other, resume=True)


def test_resuming_from_nothing_and_from_damaged_files(tmp_path):
    with pytest.raises(UsageError, match="nothing to resume"):
        tune(tmp_path, network(), resume=True)
    tune(tmp_path, network())
    folder = tmp_path / "checkpoints"
    best, last = (folder / "best.safetensors").read_bytes(), (folder / "last.pt").read_bytes()
    (folder / "best.safetensors").write_bytes(best[:1000])
    with pytest.raises(RunError, match=r"best\.safetensors is missing or damaged"):
        tune(tmp_path, network(), resume=True)
    (folder / "previous.pt").write_bytes(b"torn")
    for content in (last[: len(last) // 2], b"", b"no checkpoint"):
        (folder / "last.pt").write_bytes(content)
        with pytest.raises(RunError, match=r"last\.pt is damaged") as caught:
            tune(tmp_path, network(), resume=True)
        assert "\n" not in str(caught.value)


def test_a_disk_that_fills_up_does_not_end_a_training(tmp_path, monkeypatch, caplog):
    whole, sync, calls = network(), os.fsync, []
    expected = tune(tmp_path / "whole", whole)
    assert expected.best_epoch > 0

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 3:  # after the best weights, the checkpoint and the history of the start
            raise OSError(28, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    model = network()
    found = tune(tmp_path / "full", model)
    assert "last.pt: No space left on device; the training goes on" in caplog.text
    assert "best.safetensors: No space left on device; the training goes on" in caplog.text
    assert (found.best, found.best_epoch, found.last) == (expected.best, expected.best_epoch, expected.last)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in whole.state_dict().items())
    monkeypatch.setattr(os, "fsync", sync)
    again = network()
    assert tune(tmp_path / "full", again, resume=True).best == expected.best  # from the checkpoint that was written
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in whole.state_dict().items())


def test_an_unfinished_training_is_not_started_over_without_a_word(tmp_path, caplog):
    said = "holds an unfinished training (in epoch 2 of 2), which is started over"
    tune(tmp_path, network(), epochs=2)
    tune(tmp_path, network(), epochs=2)
    assert "unfinished" not in caplog.text
    data = Toy()

    def interrupt(epoch, index):
        if epoch == 2:
            raise KeyboardInterrupt

    data.on_item = interrupt
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path, network(), data, epochs=2)
    assert said not in caplog.text
    tune(tmp_path, network(), epochs=2)
    assert said in caplog.text


def test_a_disk_that_is_full_ends_a_training_before_it_begins(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"cannot write .*best\.safetensors: No space left on device"):
        tune(tmp_path, network())


def test_a_failing_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save_last({"x": torch.zeros(3)})
    before = checkpoints.last.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"cannot write .*last\.pt: No space left on device"):
        checkpoints.save_last({"x": torch.ones(3)})
    assert checkpoints.last.read_bytes() == before
    assert [p.name for p in checkpoints.last.parent.iterdir()] == ["last.pt"]
