"""Images without labels: they calibrate, and tell how far the answers move; accuracy they cannot give."""

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
