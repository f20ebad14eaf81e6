"""The files of a training: the last two states, what they are of, and what stands in their way."""

import os

import pytest
import torch

import cnncompress as cc
from cnncompress.errors import RunError, UsageError
from cnncompress.finetuning import Checkpoints, Lessons, finetune
from cnncompress.network.evaluate import Evaluation, with_answers
from tests.finetuning.toy import Toy, assert_same, history_of, network, settings, state_of, tune


def test_the_last_two_are_kept(tmp_path):
    tune(tmp_path, network(), epochs=1, checkpoint_minutes=0)
    folder = tmp_path / "checkpoints"
    last, previous = (torch.load(folder / f"{name}.pt", weights_only=True) for name in ("last", "previous"))
    assert (last["epoch"], last["step"]) == (2, 0)
    assert (previous["epoch"], previous["step"]) == (1, 6)


@pytest.mark.few(2)
@pytest.mark.parametrize("content", [None, b"", b"torn", 0.5])
@pytest.mark.parametrize("minutes", [0, 10])
def test_a_torn_checkpoint_falls_back_to_the_one_before(tmp_path, caplog, content, minutes):
    straight, resumed = network(), network()
    expected = tune(tmp_path / "a", straight, checkpoint_minutes=minutes)
    tune(tmp_path / "b", network(), checkpoint_minutes=minutes)
    last = tmp_path / "b" / "checkpoints" / "last.pt"
    whole = last.read_bytes()
    if content is None:
        last.unlink()
    else:
        last.write_bytes(content if isinstance(content, bytes) else whole[: int(content * len(whole))])
    result = tune(tmp_path / "b", resumed, resume=True, checkpoint_minutes=minutes)
    assert_same(state_of(straight), state_of(resumed))
    assert history_of(result) == history_of(expected)
    assert ("last.pt is damaged" in caplog.text) == (content is not None)


@pytest.mark.parametrize("images", [1, 8, 9, 24])
def test_the_best_weights_know_their_answers(tmp_path, images):
    files, labels = Checkpoints(tmp_path), torch.arange(images) % 3
    answers = torch.stack([labels, torch.zeros_like(labels)], 1)
    files.save_best(network(), 2, with_answers(Evaluation(1.0, 2.0, 3.0, images), answers))
    epoch, found = files.load_best()
    assert (epoch, found) == (2, Evaluation(1.0, 2.0, 3.0, images))
    assert torch.equal(found.answers, answers)
    assert torch.equal(found.hits, labels == 0)
    files.save_best(network(), 2, with_answers(Evaluation(1.0, 2.0, 3.0, images + 8), answers))
    with pytest.raises(RunError, match="missing or damaged"):
        files.load_best()


@pytest.mark.parametrize("changes", [{}, {"ema": 0.5}], ids=str)
def test_a_result_knows_which_images_its_network_is_right_on(tmp_path, changes):
    model, val = network(), Toy(24, seed=1)
    for resume in (False, True):
        result = tune(tmp_path, model, val=val, resume=resume, **changes)
        found = cc.evaluate(model, cc.make_loader(val, 8), progress=False)
        assert torch.equal(result.best.answers, found.answers)


def train_of(folder, origin, resume=False, ready=lambda: None):
    torch.set_num_threads(1)
    checkpoints = Checkpoints(folder / "checkpoints", ready, origin)
    lessons = Lessons(Toy(), Toy(24, seed=1))
    return finetune(network(), lessons, settings(epochs=1), checkpoints, device="cpu", resume=resume)


def test_a_training_resumes_only_what_it_was_of(tmp_path):
    origin = {"the data's fingerprint": "ab", "mean": [0.5, 0.5, 0.5]}
    train_of(tmp_path, origin)
    train_of(tmp_path, origin, resume=True)
    with pytest.raises(UsageError, match="the data's fingerprint was ab, now cd"):
        train_of(tmp_path, {**origin, "the data's fingerprint": "cd"}, resume=True)
    with pytest.raises(UsageError, match=r"mean was \[0\.5, 0\.5, 0\.5\], now \[9\.0\]"):
        train_of(tmp_path, {**origin, "mean": [9.0]}, resume=True)
    with pytest.raises(UsageError, match=r"input size was None, now \[8, 8\]"):
        train_of(tmp_path, {**origin, "input size": [8, 8]}, resume=True)


def test_a_training_resumes_with_as_many_processes(tmp_path):
    tune(tmp_path, network())
    path = tmp_path / "checkpoints" / "last.pt"
    state = torch.load(path, weights_only=True)
    state["settings"]["processes"] = 2
    torch.save(state, path)
    with pytest.raises(UsageError, match="processes was 2, now 1"):
        tune(tmp_path, network(), resume=True)


def test_nothing_is_written_before_the_place_is_ready(tmp_path):
    def refuse():
        raise RunError("the run was replaced")

    with pytest.raises(RunError, match="the run was replaced"):
        train_of(tmp_path, {}, ready=refuse)
    assert list(tmp_path.rglob("*.*")) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", ["checkpoints/last.pt", "checkpoints/best.safetensors", "history.jsonl"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_links_and_pipes_are_neither_followed_nor_replaced(tmp_path, name, kind):
    (tmp_path / "outside").write_text("kept")
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    if kind == "link":
        path.symlink_to(tmp_path / "outside")
    else:
        os.mkfifo(path)
    mode = path.lstat().st_mode
    for resume in (False, True):
        with pytest.raises((RunError, UsageError)):
            train_of(tmp_path / "run", {}, resume=resume)
    assert path.lstat().st_mode == mode
    assert (tmp_path / "outside").read_text() == "kept"


def test_what_a_killed_process_left_is_removed(tmp_path):
    for resume in (False, True):
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        for name in ("checkpoints/.last.pt.tmp", "checkpoints/.best.safetensors.tmp", ".history.jsonl.tmp"):
            (tmp_path / name).write_bytes(b"half")
        tune(tmp_path, network(), resume=resume)
        assert not list(tmp_path.rglob(".*"))
