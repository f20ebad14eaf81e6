"""A cascade that is interrupted anywhere goes on to the bits of one that was not."""

import dataclasses

import pytest
import torch

from cnncompress.errors import RunError, UsageError
from cnncompress.finetuning.checkpoints import Checkpoints
from tests.finetuning.cascades import VAL, original, small_of, tune
from tests.finetuning.toy import Toy, assert_same, history_of, state_of
from tests.finetuning.toy import tune as tune_plainly


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The folder, the network and the result of a cascade that nothing interrupted."""
    folder, small = tmp_path_factory.mktemp("straight"), small_of(original())
    return folder, small, tune(folder, small)


def interrupting(epoch, count):
    """Images, of which item number `count` (from 1 on) of an epoch is where somebody interrupts; 0 is statistics."""
    train, seen = Toy(), []

    def on_item(now, index):
        if now == epoch:
            seen.append(index)
            if len(seen) == count:
                raise KeyboardInterrupt

    train.on_item = on_item
    return train


def check_same(straight, folder, small, result):
    _, expected, whole = straight
    assert_same(state_of(small), state_of(expected))
    assert history_of(result) == history_of(whole)
    assert dataclasses.replace(result, history=[]) == dataclasses.replace(whole, history=[])
    histories = [(place / "history.jsonl").read_text().count("\n") for place in (folder, straight[0])]
    assert histories[0] == histories[1]


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("epoch", "count", "position"),
    [
        (1, 1, (1, 1, 0)),
        (2, 21, (1, 2, 2)),
        (0, 48 + 5, (1, 3, 0)),
        (3, 1, (2, 1, 0)),
        (4, 30, (2, 2, 3)),
        (0, 2 * 48 + 1, (2, 3, 0)),
        (6, 48, (3, 2, 5)),
    ],
    ids=["first step", "within", "between", "second step", "within the second", "between again", "last"],
)
def test_going_on(tmp_path, straight, epoch, count, position):
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path, small_of(original()), train=interrupting(epoch, count))
    state = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    assert (state["cascade"]["step"], state["epoch"], state["step"]) == position
    torch.manual_seed(12345)
    small = small_of(original())
    check_same(straight, tmp_path, small, tune(tmp_path, small, resume=True))


def test_interrupted_twice_and_a_torn_checkpoint(tmp_path, straight):
    for epoch, count, resume in ((2, 9, False), (4, 17, True)):
        with pytest.raises(KeyboardInterrupt):
            tune(tmp_path, small_of(original()), train=interrupting(epoch, count), resume=resume)
    (tmp_path / "checkpoints" / "last.pt").write_bytes(b"torn")
    small = small_of(original())
    check_same(straight, tmp_path, small, tune(tmp_path, small, resume=True))


@pytest.mark.slow
@pytest.mark.parametrize("write", ["save_best", "save_last", "save_history"])
@pytest.mark.parametrize("torn", [False, True])
def test_killed_between_the_files_of_a_step(tmp_path, straight, monkeypatch, write, torn):
    """The second or third step has begun to write: each file of it, with the last checkpoint whole or torn."""
    for step in (2, 3):
        whole, folder = getattr(Checkpoints, write), tmp_path / str(step)

        def killed(self, *args, whole=whole, step=step, **options):
            if getattr(getattr(self, "story", None), "step", 0) == step:
                raise KeyboardInterrupt
            return whole(self, *args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, write, killed)
            with pytest.raises(KeyboardInterrupt):
                tune(folder, small_of(original()))
        if torn:
            (folder / "checkpoints" / "last.pt").write_bytes(b"torn")
        small = small_of(original())
        check_same(straight, folder, small, tune(folder, small, resume=True))


def test_a_cascade_that_is_done_gives_its_result_again(straight, tmp_path):
    small = small_of(original())
    check_same(straight, straight[0], small, tune(straight[0], small, resume=True))


def test_only_the_same_cascade_goes_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path, small_of(original()), train=interrupting(4, 1))
    other = original()
    with torch.no_grad():
        other[0].bias += 1
    cases = [
        ({"schedule": "cascade:group=2"}, {}, "schedule was cascade, now cascade:group=2"),
        ({"until_drop": 3.0}, {}, "until_drop was None, now 3.0"),
        ({"calibration_images": 7}, {}, "calibration_images was 1000, now 7"),
        ({}, {"network": other}, "the original's weights was "),
        ({}, {"small": small_of(original(), rank=1)}, "the plan was "),
        ({}, {"train": Toy(40)}, "training images was 48, now 40"),
    ]
    for changes, given, words in cases:
        with pytest.raises(UsageError, match=words):
            tune(tmp_path, **{"small": small_of(original()), **given}, resume=True, **changes)
    with pytest.raises(UsageError, match="schedule was cascade, now all"):
        tune_plainly(tmp_path, small_of(original()), resume=True, val=VAL)


def test_a_checkpoint_that_tells_another_story(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path, small_of(original()), train=interrupting(4, 1))
    path = tmp_path / "checkpoints" / "last.pt"
    state = torch.load(path, weights_only=True)
    told = state["cascade"]
    for story in (None, {}, {**told, "step": 9}, {**told, "start": 3}, {**told, "more": 1}):
        torch.save({**state, "cascade": story}, path)
        with pytest.raises(RunError, match=r"last\.pt does not fit this cascade; run without --resume"):
            tune(tmp_path, small_of(original()), resume=True)


def test_an_unfinished_cascade_is_named_before_it_is_started_over(tmp_path, caplog):
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path, small_of(original()), train=interrupting(0, 48 + 5))
    tune_plainly(tmp_path, small_of(original()), epochs=1)
    assert "holds an unfinished training (in step 1 of 3), which is started over" in caplog.text
    assert not (tmp_path / "checkpoints" / "second.safetensors").exists()


def test_steps_that_follow_warn_of_nothing(tmp_path, caplog):
    tune(tmp_path, small_of(original()), until_drop=50.0, epochs=3)
    tune(tmp_path, small_of(original()), until_drop=50.0, epochs=3)
    assert "unfinished" not in caplog.text


def test_damaged_best_weights(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path, small_of(original()), train=interrupting(4, 1))
    (tmp_path / "checkpoints" / "second.safetensors").write_bytes(b"torn")
    with pytest.raises(RunError, match=r"second\.safetensors is missing or damaged"):
        tune(tmp_path, small_of(original()), resume=True)
