"""Every call to the file system fails once, by an error and by the death of the process: all is whole, old or new."""

import itertools
import os
import subprocess
import sys

import pytest

from tests.run_networks import env

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs quick processes")]

CALLS = {"save": 25, "save_new": 20, "update": 25, "tune": 60, "export": 8}  # at least so many are met


@pytest.mark.parametrize(
    ("operation", "way"),
    [*itertools.product(CALLS, ["error", "kill"]), ("save_new", "error and stat"), ("update", "error and stat")],
)
def test_whichever_call_fails_nothing_is_lost_or_half_written(tmp_path, operation, way):
    command = [sys.executable, "-m", "tests.runs.faults", operation, way, str(tmp_path / "root")]
    done = subprocess.run(command, env=env(), capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    words, _, count = done.stdout.splitlines()[-1].rpartition(" ")
    assert words == "reached the end after"
    assert int(count) >= CALLS[operation]
