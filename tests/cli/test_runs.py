"""Runs that are missing, damaged, of a newer version, or no runs; options that a run cannot follow."""

import os
from pathlib import Path

import pytest

from tests.cli.conftest import edit_json

COMMANDS = [
    ["report"],
    ["evaluate", "--data", "digits"],
    ["finetune", "--data", "digits"],
    ["export", "--format", "pt2"],
    ["inspect"],
    ["profile"],
    ["decompose", "--out", "out"],
]


def truncate(path, size):
    os.truncate(path, size)


DAMAGE = {
    "newer": (lambda: edit_json("run/run.json", format=99), "newer version"),
    "no format": (lambda: edit_json("run/run.json", format=None), "names no format"),
    "no source": (lambda: edit_json("run/run.json", source=None), "damaged"),
    "factory gone": (
        lambda: edit_json("run/run.json", source={"kind": "factory", "name": "none.py:f", "kwargs": {}}),
        "none.py",
    ),
    "input size": (lambda: edit_json("run/run.json", preprocessing={"size": "large"}), "damaged"),
    "truncated info": (lambda: truncate("run/run.json", 20), "run.json is not JSON"),
    "truncated plan": (lambda: truncate("run/plan.json", 20), "plan.json is not JSON"),
    "truncated network": (lambda: truncate("run/model.safetensors", 9000), "truncated"),
    "no network": (lambda: Path("run/model.safetensors").unlink(), "incomplete"),
    "no plan": (lambda: Path("run/plan.json").unlink(), "incomplete"),
    "no metrics": (lambda: Path("run/metrics.json").unlink(), "incomplete"),
}


REPORTED = ("factory gone", "truncated network")  # as a report builds no network


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_run(name, run_copy, refused):
    damage, words = DAMAGE[name]
    damage()
    for command, *rest in COMMANDS:
        if command != "report" or name not in REPORTED:
            assert words in refused(command, "run", *rest)


@pytest.mark.parametrize("name", REPORTED)
def test_what_was_measured_is_told_whatever_became_of_the_network(name, run_copy, done):
    before = done("report", "run")
    DAMAGE[name][0]()
    assert done("report", "run") == before


@pytest.mark.parametrize("command", [COMMANDS[0], COMMANDS[2], COMMANDS[6]], ids=lambda c: c[0])
def test_damaged_measurements(command, run_copy, refused):
    Path("run/metrics.json").write_text("{}")
    assert "run is damaged: metrics.json" in refused(command[0], "run", *command[1:])


@pytest.mark.parametrize(("command", "rest"), [(c[0], c[1:]) for c in COMMANDS], ids=[c[0] for c in COMMANDS])
def test_no_run(command, rest, refused):
    Path("files").mkdir()
    Path("files/notes.txt").touch()
    assert "no run at runs/none" in refused(command, "runs/none", *rest)
    assert "files is not a run: it has no run.json" in refused(command, "files", *rest)


@pytest.mark.parametrize(("command", "rest"), [(c[0], c[1:]) for c in COMMANDS[2:4]], ids=["finetune", "export"])
def test_a_network_is_no_run(command, rest, refused):
    assert "no run at digits_vgg" in refused(command, "digits_vgg", *rest)


@pytest.mark.parametrize("option", [["--weights", "none"], ["--num-classes", "7"]])
@pytest.mark.parametrize("command", ["evaluate", "inspect", "profile", "decompose"])
def test_a_run_has_weights_of_its_own(command, option, saved, refused):
    data = ["--data", "digits"] if command == "evaluate" else []
    assert f"leave out {option[0]}" in refused(command, saved, *data, *option, code=2)


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        ([], 2, "nothing to train on; give --data"),
        (["--data", "digits", "--lr", "-1"], 2, "lr -1"),
        (["--data", "digits", "--lr", "nan"], 2, "--lr: nan should be a finite number"),
        (["--data", "digits", "--epochs", "0"], 2, "epochs 0"),
        (["--data", "digits", "--weight-decay", "-1"], 2, "weight_decay -1"),
        (["--data", "digits", "--batch-size", "0"], 2, "--batch-size"),
        (["--data", "digits", "--precision", "fp16"], 2, "fp16 training needs a GPU"),
        (["--data", "digits", "--resume"], 2, "nothing to resume"),
    ],
)
@pytest.mark.parametrize("out", [[], ["--out", "new/run"]])
def test_wrong_training(args, code, words, out, run_copy, refused, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    if "--resume" in args and out:
        code, words = 1, "is not a run to resume in"
    assert words in refused("finetune", "run", *args, *out, code=code)
