import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import cnncompress as cc
from cnncompress.data.loading import UnreadableError
from cnncompress.finetuning import Lessons, Origin, finetune
from tests.finetuning.toy import Auxiliary, Toy, chain, settings


def train_shared(out, batch_size=8, **changes):
    """What each process runs: 25 validation images do not divide by two, and the network has no random parts.

    The learning rate is found by trials that all processes take part in.
    """
    torch.set_num_threads(1)
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), chain(6, 3, 4), Auxiliary())
    teacher = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Flatten(), nn.Linear(384, 3))
    chosen = settings(batch_size=batch_size, lr=None, distill="logits+attention", teacher_share=0.5, **changes)
    place = out / "checkpoints"
    result = finetune(model, Lessons(Toy(), Toy(25, seed=1), teacher), chosen, place, device="cpu")
    return {"history": result.history, "model": model.state_dict()}


def cascade_shared(out, group=1):
    """As `train_shared`, for a cascade of two layers that starts from a network without random parts.

    Nine images for its statistics do not divide by two, nor do the 24 validation images that can be read.
    """
    torch.set_num_threads(1)
    torch.manual_seed(4)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)
    )
    plan = cc.plan(network, torch.zeros(1, 3, 8, 8), method="spatial-svd", rank=2, metric="data-covariance")
    small = cc.decompose(network, cc.Plan(plan.layers), progress=False)
    with torch.no_grad():
        small[-1].weight.zero_()  # right on a third of the images
    chosen = settings(schedule=f"cascade:group={group}", lr=0.05, calibration_images=9)
    lessons = Lessons(Toy(), Unreadable(25, seed=1), origin=Origin(network, plan))
    result = finetune(small, lessons, chosen, out / f"cascade{group}", device="cpu")
    answers = small(torch.stack([lessons.val[i][0] for i in range(25) if i != 7])).detach()
    return {"history": result.history, "hits": result.best.hits, "answers": answers}


class Unreadable(Toy):
    """Image number 7 cannot be read."""

    def __getitem__(self, index):
        if index == 7:
            raise UnreadableError("seven", "it is damaged")
        return super().__getitem__(index)


SCRIPT = """
import sys
from pathlib import Path

import torch

from cnncompress.errors import UsageError
from cnncompress.finetuning import is_main_process
from cnncompress.network.compiling import missing_compiler
from tests.finetuning.test_processes import cascade_shared, train_shared

out = Path(sys.argv[1])
try:
    train_shared(out, batch_size=7)
except UsageError as error:
    refusal = str(error)
saved = {**train_shared(out), "refusal": refusal, "cascades": [cascade_shared(out, group) for group in (1, 2)]}
if not missing_compiler():
    saved["compiled"] = train_shared(out / "compiled", compile=True)["model"]
if is_main_process():
    torch.save(saved, out / "result.pt")
"""


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, tmp_path]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(root)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    two = torch.load(tmp_path / "result.pt", weights_only=True)
    one = train_shared(tmp_path / "one")
    assert "batch size 7 cannot be split evenly over 2 processes" in two["refusal"]
    for a, b in zip(one["history"], two["history"], strict=True):
        assert a["val_images"] == b["val_images"] == 25
        assert a["lr"] == b["lr"]
        assert a["val_loss"] == pytest.approx(b["val_loss"], rel=1e-4)
        assert (a["train_loss"] or 0) == pytest.approx(b["train_loss"] or 0, rel=1e-4)
    for name, value in one["model"].items():
        for found in (two["model"], two.get("compiled", two["model"])):
            assert torch.allclose(value, found[name], atol=1e-5), name
    for group, found in enumerate(two["cascades"], 1):
        check_cascades(cascade_shared(tmp_path / "one", group), found)


def check_cascades(one, two):
    labels = torch.tensor([i % 3 for i in range(25) if i != 7])
    assert torch.allclose(one["answers"], two["answers"], atol=1e-3)
    assert torch.equal(two["hits"], two["answers"].argmax(1) == labels)
    assert torch.equal(one["hits"], two["hits"])
    assert two["hits"].double().mean() > 0.5
    for a, b in zip(one["history"], two["history"], strict=True):
        assert a["val_images"] == b["val_images"] == 24
        assert (a["cascade_step"], a["epoch"], a["lr"]) == (b["cascade_step"], b["epoch"], b["lr"])
        assert a["val_loss"] == pytest.approx(b["val_loss"], rel=1e-3)
