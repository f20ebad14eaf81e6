"""Real commands that are killed at any moment, or meet each other: nothing is lost, nothing is mixed."""

import os
import random
import time
from pathlib import Path

import pytest
import torch

import cnncompress as cc
from cnncompress.runs import load_run
from tests.cli import driver
from tests.cli.conftest import image_folder, listing

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")]

SEED = 3
KILLS = 40


@pytest.fixture
def start(processes, tmp_path):
    """Starts a command in a folder of its own for its output."""
    started = []

    def run(*args):
        place = tmp_path / f"process{len(started)}"
        place.mkdir()
        paths = [str(tmp_path / a) if a in ("run", "data") else a for a in args]
        process = processes.Process(target=driver.run_in, args=(str(place), "cnncompress.cli:main", 0, paths))
        process.start()
        process.place = place
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.join()


def said(process):
    process.join(timeout=120)
    return process.exitcode, (process.place / ".out").read_text(), (process.place / ".err").read_text()


def check_whole(run):
    """The run loads, its plan is that of its network, and its measurements are those of its cost."""
    found = load_run(run)
    assert (run / "notes.md").read_text() == "mine"
    rank = int(found.info["command"][found.info["command"].index("--rank") + 1])
    assert {p.rank for p in found.plan.layers.values()} == {(rank,)}
    assert all(tensor.isfinite().all() for tensor in found.model.state_dict().values() if tensor.is_floating_point())
    finetuned = "finetune" in found.info
    gained = any(row["kind"] == "finetuned" for row in found.metrics["rows"])
    assert finetuned == (gained or any("gained nothing" in note for note in found.metrics["notes"]))
    return rank, finetuned


def test_forty_kills(start, tmp_path, cli):
    image_folder("data/train", images=4)
    image_folder("data/val", images=1)
    assert said(start("decompose", "digits_vgg", "--rank", "2", "--out", "run"))[0] == 0
    run, rng, seen = tmp_path / "run", random.Random(SEED), set()
    (run / "notes.md").write_text("mine")
    for i in range(KILLS):
        if i % 2:
            args = ["finetune", "run", "--data", "data", "--batch-size", "8", "--checkpoint-minutes", "0"]
        else:
            args = ["decompose", "digits_vgg", "--rank", str(2 + i // 2 % 3), "--out", "run", "--force"]
        process = start(*args)
        longest = 1.5 if len(seen) > 1 else 1.5 * 1.1**i  # a busy machine takes longer to write at all
        time.sleep(rng.uniform(0.05, longest))
        process.kill()
        process.join()
        seen.add(check_whole(run))
    assert len(seen) > 1
    result = start("decompose", "digits_vgg", "--rank", "2", "--out", "run", "--force")
    assert said(result)[0] == 0
    assert check_whole(run) == (2, False)
    assert not [p for p in listing(tmp_path) if ".run." in p or p.endswith(".tmp")]


def test_two_writers_at_once(start, tmp_path, done):
    done("decompose", "digits_vgg", "--rank", "2", "--out", "run")
    (tmp_path / "run" / "notes.md").write_text("mine")
    for _ in range(5):
        writers = [
            start("decompose", "digits_vgg", "--rank", str(rank), "--out", "run", "--force") for rank in (2, 3, 4)
        ]
        results = [said(writer) for writer in writers]
        assert any(code == 0 for code, _, _ in results)
        for code, out, err in results:
            assert code == 0 or (code == 1 and out == "" and "is being written by process" in err)
        check_whole(tmp_path / "run")
    assert not [p for p in os.listdir(tmp_path) if p.startswith(".run")]
    assert Path(tmp_path / "run" / "notes.md").read_text() == "mine"
    assert torch.is_tensor(next(cc.load(tmp_path / "run").parameters()))
