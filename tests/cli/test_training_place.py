"""Fine-tuning and the run that it is in: nothing is touched too early, replaced underneath, or resumed as another."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

import cnncompress as cc
from cnncompress.data import Images
from cnncompress.finetuning.trainer import Trainer
from cnncompress.runs.lock import writing
from tests.cli.conftest import image_folder, listing

QUICK = ["--batch-size", "16", "--lr", "0.001"]


def content(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.fixture
def data(cli):
    image_folder("data/train", images=4)
    image_folder("data/val", images=1)
    return "data"


@pytest.fixture
def interrupted_training(run_copy, data, cli, monkeypatch):
    """A run whose training was interrupted in its first epoch."""
    step = Trainer._step

    def interrupt(self, *args):
        if self.progress.step == 1:
            raise KeyboardInterrupt
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", interrupt)
        assert "go on with the same command and --resume" in cli("finetune", "run", "--data", data, *QUICK).err
    return run_copy


@pytest.mark.parametrize(
    "args",
    [
        ["--data", "nowhere"],
        ["--data", "data/train/class0"],
        ["--data", "data", "--precision", "fp16"],
        ["--data", "data", "--schedule", "upper", "--lr", "-1"],
        ["--data", "data", "--batch-size", "0"],
        ["--data", "data", "--checkpoint-minutes", "-1"],
        ["--data", "data", "--checkpoint-minutes", "nan"],
        [],
    ],
)
def test_a_training_that_cannot_be_leaves_the_run_at_out(args, run_copy, data, refused, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    shutil.copytree("run", "B")
    Path("B/notes.md").write_text("mine")
    before = content("B")
    code = 1 if "nowhere" in args or "data/train/class0" in args else 2
    refused("finetune", "run", "--out", "B", "--force", *args, code=code)
    assert content("B") == before


def test_unreadable_images_leave_the_run_at_out(run_copy, cli):
    image_folder("broken/train", broken=2)
    image_folder("broken/val", broken=2)
    shutil.copytree("run", "B")
    before = content("B")
    assert cli("finetune", "run", "--out", "B", "--force", "--data", "broken").code == 1
    assert content("B") == before


def test_one_at_a_time(run_copy, data, refused):
    with writing(Path("run").resolve()):
        for args in (["finetune", "run", "--data", data], ["decompose", "digits_vgg", "--out", "run", "--force"]):
            found = []
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    refused(*args)
                    code = 0
                finally:
                    os._exit(code)
            found.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            assert found == [0]


@pytest.mark.parametrize("change", ["replaced", "removed", "renamed"])
def test_a_run_that_is_replaced_underneath_stops_its_training(change, run_copy, data, cli, monkeypatch):
    step = Trainer._step
    shutil.copytree("run", "other")
    before = content("other")

    def meanwhile(self, *args):
        if self.progress.step == 1:
            os.rename("run", "was")
            if change == "replaced":
                shutil.copytree("other", "run")
        return step(self, *args)

    monkeypatch.setattr(Trainer, "_step", meanwhile)
    result = cli("finetune", "run", "--data", data, *QUICK)
    assert result.code == 1
    assert "run was replaced or removed while this training ran" in result.err
    assert Path("run").exists() == (change == "replaced")
    if change == "replaced":
        assert {p.name: c for p, c in content("run").items()} == {p.name: c for p, c in before.items()}


def test_resuming_on_other_images_of_the_same_names_and_sizes(interrupted_training, refused):
    paths = sorted(Path("data/train").rglob("0.png"))
    first, last = (path.read_bytes() for path in (paths[0], paths[-1]))
    assert len(first) == len(last)
    paths[0].write_bytes(last)
    paths[-1].write_bytes(first)
    words = refused("finetune", "run", "--data", "data", *QUICK, "--resume", code=2)
    assert "cannot resume run/checkpoints/last.pt: the training images' content was " in words


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--mean", "9,9,9"], "mean was [0.5, 0.5, 0.5], now [9.0, 9.0, 9.0]"),
        (["--std", "3"], "std was "),
        (["--data", "digits"], "fingerprint was "),
        (["--epochs", "5"], "epochs was 1, now 5"),
    ],
)
def test_resuming_another_training_is_refused_by_name(args, words, interrupted_training, refused):
    assert words in refused("finetune", "run", "--data", "data", *QUICK, *args, "--resume", code=2)


def test_resuming_the_training_of_another_network_is_refused(interrupted_training, cli, refused):
    info = json.loads(Path("run/run.json").read_text())
    result = cli("decompose", "digits_vgg", "--rank", "4", "--out", "run", "--force")
    assert result.code == 0
    assert "kept in run" in result.err
    assert "checkpoints" in result.err
    assert Path("run/checkpoints/last.pt").exists()
    path = Path("run/run.json")
    path.write_text(path.read_text().replace(json.loads(path.read_text())["created"], "2001-01-01T00:00:00+00:00"))
    words = refused("finetune", "run", "--data", "data", *QUICK, "--resume", code=2)
    assert f"the time the run was made was {info['created']}, now 2001" in words


def test_the_normalisation_of_a_training_is_recorded_and_used(run_copy, data, done, monkeypatch):
    done("finetune", "run", "--data", data, *QUICK, "--mean", "0.1,0.2,0.3", "--std", "0.7")
    recorded = json.loads(Path("run/run.json").read_text())["preprocessing"]
    assert (recorded["mean"], recorded["std"]) == ([0.1, 0.2, 0.3], [0.7, 0.7, 0.7])
    seen, read = [], Images.__getitem__

    def watched(self, index):
        seen.append((self.preprocessing.size, self.preprocessing.mean, self.preprocessing.std))
        return read(self, index)

    monkeypatch.setattr(Images, "__getitem__", watched)
    done("evaluate", "run", "--data", data)
    assert set(seen) == {((32, 32), (0.1, 0.2, 0.3), (0.7, 0.7, 0.7))}


def test_a_link_in_the_place_of_the_checkpoints_is_refused(run_copy, data, refused):
    Path("elsewhere").mkdir()
    Path("run/checkpoints").symlink_to("../elsewhere")
    assert "run/checkpoints is a link" in refused("finetune", "run", "--data", data)
    assert listing("elsewhere") == []


def test_training_into_another_run_leaves_both_whole(run_copy, data, done):
    before = content("run")
    done("finetune", "run", "--out", "B", "--data", data, *QUICK)
    assert content("run") == before
    found = cc.load("B").state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in found.values() if tensor.is_floating_point())
    assert Path("B/checkpoints/previous.pt").exists()
