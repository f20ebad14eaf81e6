"""How OpenMP's threads wait for work, which is set before torch is imported."""

import os
import subprocess
import sys

import pytest

from cnncompress import processor, waiting
from cnncompress.waiting import KEYS

CHILD = f"import os, cnncompress; print(*(os.environ.get(key, '-') for key in {KEYS}))"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE - -"),
        ({"GOMP_SPINCOUNT": "7"}, "- 7 -"),
        ({"KMP_BLOCKTIME": "7"}, "- - 7"),
    ],
)
def test_threads_do_not_wait_busily_for_long_unless_asked_to(given, expected):
    environment = {key: value for key, value in os.environ.items() if key not in KEYS} | given
    found = subprocess.run([sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == expected.split()


def test_threads_wait_for_a_moment_where_nobody_has_said_how_long():
    environment = {key: value for key, value in os.environ.items() if key not in KEYS}
    found = subprocess.run([sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True, check=True)
    policy, spins, blocktime = found.stdout.split()
    assert (policy, blocktime) == ("-", "-")
    assert int(spins) in (waiting.TURNS, waiting.TURNS_ON_INTEL)


@pytest.fixture
def cpuinfo(monkeypatch, tmp_path):
    """A file in the place of the system's."""
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    processor._first.cache_clear()
    yield tmp_path / "cpuinfo"
    processor._first.cache_clear()


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("processor\t: 0\nvendor_id\t: GenuineIntel\n", "5000"),
        ("processor\t: 0\nvendor_id\t: AuthenticAMD\n\nprocessor\t: 1\nvendor_id\t: GenuineIntel\n", "2000"),
        ("", "2000"),
    ],
)
def test_as_many_turns_as_suit_the_maker(cpuinfo, told, expected):
    cpuinfo.write_text(told)
    environment: dict[str, str] = {}
    waiting.set_waiting(environment)
    assert environment == {"GOMP_SPINCOUNT": expected}


def test_a_system_without_cpuinfo_is_no_fault(cpuinfo):
    environment: dict[str, str] = {}
    waiting.set_waiting(environment)
    assert environment == {"GOMP_SPINCOUNT": "2000"}
    assert processor.features() == frozenset()
