"""Images without labels: they calibrate, teach, and tell how far the answers move; accuracy they cannot give."""

import json
from pathlib import Path

import pytest

from cnncompress.data.digits import DIGITS


@pytest.fixture
def flat(cli):
    """Forty digits in one folder."""
    Path("flat").mkdir()
    for i in range(40):
        DIGITS.draw(i).save(f"flat/{i}.png")
    return "flat"


@pytest.mark.slow
def test_they_calibrate_and_the_report_has_the_divergence(flat, done):
    out = done("decompose", "digits_vgg", "--budget", "macs=0.5", "--data", flat, "--out", "run")
    assert "on 20 images without labels, the most probable class is the original's for" in out
    assert "nats" in out
    assert "on 40 images without labels" in done(
        "decompose", "digits_vgg", "--rank", "0.5", "--data", flat, "--out", "other"
    )


@pytest.mark.parametrize(
    "args",
    [
        ["evaluate", "digits_vgg"],
        ["report", "run"],
        ["finetune", "run"],
        ["decompose", "digits_vgg", "--max-drop", "1", "--out", "out"],
        ["decompose", "digits_vgg", "--rank", "4", "--metric", "mahalanobis", "--out", "out"],
    ],
)
def test_what_needs_labels_says_so(args, flat, run_copy, refused):
    assert f"needs labels, which images in folders {flat}/CLASS/ have" in refused(*args, "--data", flat)


TEACH = ["--distill", "logits", "--unlabelled", "--batch-size", "8", "--lr", "0.001"]


def test_they_teach_and_the_report_has_the_divergence(flat, run_copy, done):
    before = json.loads(Path("run/metrics.json").read_text())["rows"]
    out = done("finetune", "run", "--data", flat, *TEACH)
    assert "without labels: on 8 others the most probable class is the original's for" in out
    after = json.loads(Path("run/metrics.json").read_text())
    tuned = after["rows"][-1]
    assert after["rows"][:2] == before
    assert (tuned["kind"], tuned["top1"], tuned["images"], tuned["data"]) == ("finetuned", None, None, None)
    assert json.loads(Path("run/run.json").read_text())["finetune"]["unlabelled"] is True
    history = [json.loads(line) for line in Path("run/history.jsonl").read_text().splitlines()]
    assert history[1]["val_loss"] < history[0]["val_loss"]


@pytest.mark.slow
def test_labels_that_are_there_choose_nothing_and_are_reported(run_copy, done):
    done("finetune", "run", "--data", "digits", *TEACH[:3], "--lr", "0.001", "--batch-size", "256")
    rows = json.loads(Path("run/metrics.json").read_text())["rows"]
    history = [json.loads(line) for line in Path("run/history.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["original", "decomposed", "finetuned"]
    assert rows[2]["images"] == rows[1]["images"] == history[1]["val_images"]
    assert history[1]["val_loss"] < history[0]["val_loss"]
    assert rows[2]["top1"] is not None
