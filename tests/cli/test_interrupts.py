"""Ctrl-C in every phase of every command: one line, exit code 1, nothing half-written."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import cnncompress as cc
from tests.cli import driver
from tests.cli.conftest import complaint, listing

QUIET = "error: interrupted; nothing is left half-written\n"
DECOMPOSE = ["decompose", "digits_vgg", "--rank", "4", "--data", "digits", "--out", "out"]
FINETUNE = ["finetune", "run", "--data", "digits", "--epochs", "2", "--batch-size", "128", "--lr", "0.01"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.getcwd()}


@pytest.fixture
def interrupted(processes, tmp_path):
    """Runs a command that is met by a signal at a place; its standard error."""

    def run(place, count, args, number=signal.SIGINT):
        process = processes.Process(target=driver.run_in, args=(str(tmp_path), place, count, args, number))
        process.start()
        process.join(timeout=120)
        out, err = (tmp_path / name for name in (".out", ".err"))
        found = (process.exitcode, out.read_text(), err.read_text())
        out.unlink()
        err.unlink()
        assert found[:2] == (1, ""), found
        return complaint(found[2])

    return run


@pytest.mark.parametrize(
    ("place", "count", "args"),
    [
        ("cnncompress.pipeline.opened:load_model", 1, DECOMPOSE),
        ("cnncompress.network.evaluate:check_labels", 2, DECOMPOSE),
        ("cnncompress.decompositions.spatial_svd:SpatialSVD.group_factorize", 3, DECOMPOSE),
        ("cnncompress.runs.write:save_tensors", 1, DECOMPOSE),
        ("cnncompress.files.publish:_move", 1, DECOMPOSE),
        ("cnncompress.latency.clock:_sample", 5, ["report", "run", "--latency", "--output", "report.md"]),
        ("cnncompress.pipeline.inspect:inspect_layers", 1, ["inspect", "run"]),
        ("torch.onnx:export", 1, ["export", "run", "--format", "onnx", "--output", "run.onnx"]),
        ("torch.export:save", 1, ["export", "run", "--format", "pt2"]),
        ("cnncompress.network.evaluate:check_labels", 1, [*FINETUNE, "--out", "out"]),
    ],
)
def test_nothing_is_written(place, count, args, run_copy, tmp_path, interrupted):
    before = listing(tmp_path)
    assert interrupted(place, count, args) == QUIET
    assert listing(tmp_path) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)])
def test_other_signals_to_stop_are_met_alike(number, run_copy, tmp_path, interrupted):
    before = listing(tmp_path)
    assert interrupted("cnncompress.files.publish:_move", 1, DECOMPOSE, number) == QUIET
    assert listing(tmp_path) == before


def without_times(path):
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in path.read_text().splitlines()]


@pytest.fixture(scope="session")
def straight(saved, tmp_path_factory):
    """The run, fine-tuned without an interruption."""
    out = tmp_path_factory.mktemp("straight") / "run"
    with pytest.raises(SystemExit):
        driver.run("cnncompress.cli:main", 0, ["finetune", str(saved), *FINETUNE[2:], "--out", str(out)])
    return out


@pytest.mark.parametrize(
    ("place", "count", "number"),
    [
        ("cnncompress.finetuning.trainer:Trainer._step", 12, signal.SIGINT),
        pytest.param("cnncompress.finetuning.batches:Batches.read", 12, signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("cnncompress.runs.write:save_tensors", 1, signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_finetune_says_how_to_go_on_and_goes_on(place, count, number, run_copy, straight, tmp_path, done, interrupted):
    before = (run_copy / "model.safetensors").read_bytes()
    words = interrupted(place, count, FINETUNE, number)
    assert words == "error: interrupted; run has a checkpoint: go on with the same command and --resume\n"
    assert (run_copy / "model.safetensors").read_bytes() == before
    assert not [path for path in listing(tmp_path) if "tmp" in path.rpartition("/")[2]]
    cc.load(run_copy)
    done(*FINETUNE, "--resume")
    found, expected = (cc.load(path).state_dict() for path in (run_copy, straight))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert without_times(run_copy / "history.jsonl") == without_times(straight / "history.jsonl")


def test_an_interrupted_start_leaves_an_earlier_training(run_copy, interrupted):
    for name in ("checkpoints/last.pt", "checkpoints/best.safetensors", "history.jsonl"):
        (run_copy / name).parent.mkdir(exist_ok=True)
        (run_copy / name).write_text("earlier")
    before = {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()}
    assert interrupted("cnncompress.network.evaluate:check_labels", 1, FINETUNE) == QUIET
    assert {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()} == before


def start(command, folder):
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-m", *command], cwd=folder, env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True
    )


@pytest.mark.parametrize("module", ["torch.nn", "torchvision.datasets", "cnncompress.runs.read"])
def test_during_imports(module, tmp_path):
    with start(["tests.cli.driver", module, "1", *DECOMPOSE], tmp_path) as process:
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out, complaint(err)) == (1, "", QUIET)
    assert listing(tmp_path) == []


def test_from_outside(tmp_path):
    """The command as users start it, interrupted at work on a network too large to be done soon."""
    with start(["cnncompress", "decompose", "vgg19", "--weights", "none", "--out", "out"], tmp_path) as process:
        while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
            time.sleep(0.05)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out, complaint(err)) == (1, "", QUIET)
    assert listing(tmp_path) == []
