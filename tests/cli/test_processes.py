"""`torchrun -m cnncompress finetune`: the first process speaks for all."""

import os
import subprocess
import sys

import pytest

from cnncompress.runs import load_run
from tests.cli.conftest import complaint

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.getcwd()}


@pytest.mark.slow
def test_two_processes(run_copy, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "cnncompress", "finetune", "run", "--data", "digits", "--lr", "0.001"]
    found = subprocess.run(
        command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("saved in run") == 1
    assert found.stdout.count("best of epoch") == 1
    rows = load_run(run_copy).metrics["rows"]
    assert rows[-1]["kind"] == "finetuned"
    assert rows[-1]["images"] == 359
    assert rows[-1]["top1"] >= rows[-2]["top1"]


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["finetune", "run", "--nope"], 2),
        (["finetune", "run"], 2),
        (["finetune", "run", "--data", "none"], 1),
        (["finetune", "none", "--data", "digits"], 1),
    ],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_wrong_input_is_one_line_of_the_first(args, code, rank, run_copy, cli, monkeypatch):
    monkeypatch.setenv("RANK", str(rank))
    result = cli(*args)
    assert (result.code, result.out, complaint(result.err).count("\n")) == (code, "", 1 - rank)


def test_what_one_process_meets_alone_is_said(run_copy, cli, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    assert complaint(cli("finetune", "run", "--data", "none").err).startswith("error: no such folder")
