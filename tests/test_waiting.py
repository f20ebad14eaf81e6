"""How OpenMP's threads wait for work, which is set before torch is imported."""

import os
import subprocess
import sys

import pytest

KEYS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
CHILD = f"import os, cnncompress; print(*(os.environ.get(key, '-') for key in {KEYS}))"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "- 1000 -"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE - -"),
        ({"GOMP_SPINCOUNT": "7"}, "- 7 -"),
        ({"KMP_BLOCKTIME": "7"}, "- - 7"),
    ],
)
def test_threads_do_not_wait_busily_for_long_unless_asked_to(given, expected):
    environment = {key: value for key, value in os.environ.items() if key not in KEYS} | given
    found = subprocess.run([sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == expected.split()
