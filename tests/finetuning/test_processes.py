import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from cnncompress.finetuning import Lessons, finetune
from tests.finetuning.toy import Auxiliary, Toy, chain, settings


def train_shared(out, batch_size=8):
    """What each process runs: 25 validation images do not divide by two, and the network has no random parts.

    The learning rate is found by trials that all processes take part in.
    """
    torch.set_num_threads(1)
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), chain(6, 3, 4), Auxiliary())
    teacher = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Flatten(), nn.Linear(384, 3))
    chosen = settings(batch_size=batch_size, lr=None, distill="logits+attention", teacher_share=0.5)
    place = out / "checkpoints"
    result = finetune(model, Lessons(Toy(), Toy(25, seed=1), teacher), chosen, place, device="cpu")
    return {"history": result.history, "model": model.state_dict()}


SCRIPT = """
import sys
from pathlib import Path

import torch

from cnncompress.errors import UsageError
from cnncompress.finetuning import is_main_process
from tests.finetuning.test_processes import train_shared

out = Path(sys.argv[1])
try:
    train_shared(out, batch_size=7)
except UsageError as error:
    refusal = str(error)
saved = {**train_shared(out), "refusal": refusal}
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
        assert torch.allclose(value, two["model"][name], atol=1e-5), name
