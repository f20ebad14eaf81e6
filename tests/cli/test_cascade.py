"""`finetune --schedule cascade` by the command line: its words, its rows, what stops it, and what it refuses."""

import json
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
import torch

import cnncompress as cc
from cnncompress.network.compressed import with_provenance
from cnncompress.runs import update_run
from tests.cli import driver
from tests.cli.conftest import edit_json, image_folder

QUICK = ["--batch-size", "16", "--lr", "0.001", "--calibration-images", "8"]
TUNE = ["finetune", "run", "--data", "data", "--schedule", "cascade:group=4", *QUICK]


@pytest.fixture
def data(cli):
    image_folder("data/train", images=4)
    image_folder("data/val", images=1)
    return "data"


def history(run):
    return [json.loads(line) for line in Path(run, "history.jsonl").read_text().splitlines()]


def test_steps_are_told_recorded_and_reported(run_copy, data, cli, done):
    before = cc.load("run").state_dict()
    result = cli(*TUNE, "--out", "tuned")
    assert result.code == 0, result.err
    layers = [layer["layer"] for layer in json.loads(done("report", "run", "--format", "json"))["layers"]]
    assert len(layers) == 9
    for number, first in ((1, layers[0]), (2, layers[4]), (3, layers[8])):
        assert re.search(rf"cascade: step {number} of 3: {re.escape(first)}, .*svd rank 4", result.err)
    assert "nothing is left to train above the layers of step 3" in result.out
    assert "3 steps and 2 epochs" in result.out
    report = json.loads(done("report", "tuned", "--format", "json"))
    rows = {number: [row for row in history("tuned") if row["cascade_step"] == number] for number in range(4)}
    assert [step["layers"] for step in report["steps"]] == [layers[:4], layers[4:8], layers[8:]]
    last = rows[0][0]["val_top1"]
    for step in report["steps"]:
        shown = rows[step["step"]]
        assert (step["before"], step["decomposed"]) == (last, shown[0]["val_top1"])
        assert step["tuned"] == max(row["val_top1"] for row in shown)
        assert (step["epochs"], step["images"]) == (len(shown) - 1, 10)
        last = step["tuned"]
    table = done("report", "tuned")
    assert re.search(r"cascade +decomposed layers +top-1 % before +decomposed +fine-tuned +epochs\n", table)
    assert re.search(r"\| *cascade *\| *decomposed layers *\|", done("report", "tuned", "--format", "markdown"))
    assert "The steps of the cascade" in done("report", "tuned", "--format", "html")
    assert json.loads(Path("tuned/run.json").read_text())["finetune"]["schedule"] == "cascade:group=4"
    changed = any(not torch.equal(before[name], value) for name, value in cc.load("tuned").state_dict().items())
    assert changed == ("whose weights are kept" not in result.out)


def test_errors_are_those_of_the_fits_of_the_cascade(run_copy, data, done):
    small = with_provenance(cc.load("run"))
    with torch.no_grad():
        small.network.classifier[6][1].bias[0] = 1e4  # so that anything is better
    update_run("run", small)
    before = json.loads(done("report", "run", "--format", "json"))
    done(*TUNE, "--epochs", "4", "--lr", "0.02")
    after = json.loads(done("report", "run", "--format", "json"))
    pairs = list(zip(before["layers"], after["layers"], strict=True))
    assert [x["error"] == pytest.approx(y["error"], rel=1e-9) for x, y in pairs] == [True] * 4 + [False] * 5
    assert any("to weights fine-tuned before" in note for note in after["notes"])
    plan = json.loads(Path("run/plan.json").read_text())
    assert [plan["errors"][y["layer"]] for _, y in pairs] == [y["error"] for _, y in pairs]


def without_times(run):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history(run)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "count", "number"),
    [
        ("cnncompress.finetuning.cascade:Cascade._decomposed", 2, signal.SIGTERM),
        ("cnncompress.finetuning.trainer:Trainer._step", 4, signal.SIGINT),
    ],
)
def test_signals_leave_a_checkpoint(place, count, number, run_copy, data, done, processes, tmp_path):
    done(*TUNE, "--out", "straight")
    before = (run_copy / "model.safetensors").read_bytes()
    process = processes.Process(target=driver.run_in, args=(str(tmp_path), place, count, TUNE, number))
    process.start()
    process.join(timeout=120)
    assert (
        "error: interrupted; run has a checkpoint: go on with the same command and --resume" in Path(".err").read_text()
    )
    assert process.exitcode == 1
    assert (run_copy / "model.safetensors").read_bytes() == before
    done(*TUNE, "--resume")
    found, expected = (cc.load(path).state_dict() for path in ("run", "straight"))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert without_times("run") == without_times("straight")


def test_a_run_whose_original_is_gone(run_copy, data, refused):
    info = json.loads(Path("run/run.json").read_text())
    edit_json("run/run.json", model={**info["model"], "sha256": "0" * 64})
    words = refused(*TUNE)
    assert "--schedule cascade:group=4 needs the original of run run" in words
    assert "give --schedule all or upper" in words
    words = refused("finetune", "run", "--data", "data", "--until-drop", "1")
    assert "--until-drop needs the original of run run" in words


def test_runs_with_fewer_channels(data, done, refused):
    done("decompose", "digits_vgg", "--method", "select", "--rank", "0.5", "--out", "run")
    assert "fewer channels (select); give --schedule all or upper" in refused(*TUNE, code=2)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--schedule", "cascade:group=0"], "--schedule: schedule 'cascade:group=0'"),
        (["--schedule", "cascde"], "did you mean 'cascade'?"),
        (["--schedule", "upper:group=2"], "all and upper take no options"),
        (["--until-drop", "-1"], "until_drop -1.0 is out of range"),
        (["--schedule", "cascade", "--calibration-images", "0"], "--calibration-images: 0 should be"),
        (["--epochs", "0"], "epochs 0 is out of range"),
    ],
)
def test_options_that_make_no_sense(args, words, run_copy, data, refused):
    assert words in refused("finetune", "run", "--data", data, *args, code=2)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_killed_at_random_moments(run_copy, data, done, processes, tmp_path):
    command = [*TUNE, "--epochs", "2", "--checkpoint-minutes", "0"]
    began = time.monotonic()
    done(*command, "--out", "straight")
    longest, rng, kills = time.monotonic() - began, random.Random(7), 0
    for _ in range(200):
        again = ["--resume"] if Path("run/checkpoints/last.pt").exists() else []
        target = driver.run_in
        process = processes.Process(target=target, args=(str(tmp_path), "cnncompress.cli:main", 0, [*command, *again]))
        process.start()
        process.join(timeout=rng.uniform(0.1, longest / 2) if kills < 6 else 120)
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        kills += 1
        cc.load("run")
    assert process.exitcode == 0, Path(".err").read_text()
    assert kills
    found, expected = (cc.load(path).state_dict() for path in ("run", "straight"))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert without_times("run") == without_times("straight")
