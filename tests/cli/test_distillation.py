"""`finetune --distill`: the teacher is the original that the run was made of."""

import json
from pathlib import Path

import pytest
import torch

from cnncompress.files.tensorfile import digest_of
from cnncompress.finetuning.distillation import Teacher
from cnncompress.models import load_model
from tests.cli.conftest import image_folder

QUICK = ["--batch-size", "16", "--lr", "0.001", "--distill", "logits"]


@pytest.fixture
def data(cli):
    image_folder("data/train", images=4)
    image_folder("data/val", images=1)
    return "data"


def test_a_run_learns_from_its_original(run_copy, data, done, monkeypatch):
    teachers = []
    answers = Teacher.answers
    monkeypatch.setattr(Teacher, "answers", lambda self, x: teachers.append(self.digest) or answers(self, x))
    done("finetune", "run", "--data", data, *QUICK, "--temperature", "2")
    assert set(teachers) == {digest_of(load_model("digits_vgg").model.state_dict())}
    found = json.loads(Path("run/run.json").read_text())["finetune"]
    assert (found["distill"], found["temperature"]) == ("logits", 2.0)
    state = torch.load("run/checkpoints/last.pt", weights_only=True)
    assert state["settings"]["teacher_share"] == 0.9
    assert state["settings"]["the teacher's weights"] == teachers[0]


def test_from_a_config(run_copy, data, done):
    Path("tune.yaml").write_text("finetune: {distill: logits, teacher_share: 0.5, batch_size: 16, lr: 0.001}")
    done("finetune", "run", "--data", data, "--config", "tune.yaml")
    assert json.loads(Path("run/run.json").read_text())["finetune"]["teacher_share"] == 0.5


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--distill", "features"], "'features'"),
        (["--distill", "attention", "--temperature", "3"], "temperature is for distillation: give --distill logits"),
        (["--attention-weight", "3"], "attention_weight is for distillation: give --distill attention with it"),
        (["--unlabelled"], "unlabelled learns the teacher's answers: give --distill logits"),
        (["--temperature", "3"], "temperature is for distillation: give --distill logits with it"),
        (["--distill", "logits", "--temperature", "-1"], "temperature -1.0 makes no sense"),
        (["--distill", "logits", "--teacher-share", "2"], "teacher_share 2.0 is out of range"),
    ],
)
def test_options_that_make_no_sense(args, words, run_copy, data, refused):
    assert words in refused("finetune", "run", "--data", data, *args, code=2)


def test_a_run_whose_original_is_gone(run_copy, data, refused):
    path = Path("run/run.json")
    info = json.loads(path.read_text())
    info["model"]["sha256"] = "0" * 64
    path.write_text(json.dumps(info))
    words = refused("finetune", "run", "--data", data, *QUICK, "--out", "B")
    assert "--distill needs the original of run run" in words
    assert "leave out --distill" in words


def test_attention_maps_are_learnt_at_the_ends_of_the_groups(run_copy, data, done, monkeypatch):
    seen = set()
    answers = Teacher.answers
    monkeypatch.setattr(Teacher, "answers", lambda self, x: seen.add(tuple(self.passes.places)) or answers(self, x))
    done("finetune", "run", "--data", data, *QUICK[:-1], "logits+attention", "--attention-weight", "10")
    before_the_pools = ("features.5", "features.12", "features.19")
    assert seen == {(), (*before_the_pools, "features")}
    found = json.loads(Path("run/run.json").read_text())["finetune"]
    assert (found["distill"], found["attention_weight"]) == ("logits+attention", 10)
