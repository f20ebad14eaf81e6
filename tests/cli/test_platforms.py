"""Machines that lack what Linux has: modules of POSIX, a home folder, a terminal for every character."""

import os
import shlex
import subprocess
import sys

import pytest

import cnncompress as cc
from cnncompress.cli.streams import make_printable
from cnncompress.latency.machine import cache_folder
from cnncompress.latency.store import Store

WITHOUT_POSIX = """
import sys
for name in ("resource", "pwd", "grp", "termios"):
    sys.modules[name] = None  # as on Windows: importing it fails
import os
for name in ("getuid", "geteuid", "fork", "mkfifo", "sched_getaffinity"):
    if hasattr(os, name):
        delattr(os, name)
from cnncompress.cli import main
main(sys.argv[1:])
"""


def run(code, *args, **environment):
    env = {**os.environ, "PYTHONPATH": os.getcwd(), **environment}
    return subprocess.run([sys.executable, "-c", code, *args], env=env, capture_output=True, check=False)


@pytest.mark.slow
def test_every_step_works_without_the_modules_of_posix(tmp_path):
    out = str(tmp_path / "run")
    for args in (["decompose", "digits_vgg", "--rank", "4", "--out", out], ["profile", "digits_vgg"], ["report", out]):
        found = run(WITHOUT_POSIX, *args)
        assert found.returncode == 0, found.stderr.decode()


def test_without_a_home_times_are_kept_nowhere(monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME", "CNNCOMPRESS_CACHE"):
        monkeypatch.delenv(name, raising=False)

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("cnncompress.latency.machine.Path.home", no_home)
    assert cache_folder() is None
    store = Store(cache_folder(), {"layer": 1})
    store.add({"chain": 2.0})
    assert store.times == {"chain": 2.0}


def test_a_cache_folder_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "file").write_text("in the way")
    store = Store(tmp_path / "file", {"layer": 1})
    store.add({"chain": 2.0})
    assert store.times == {"chain": 2.0}
    assert Store(tmp_path / "file", {"layer": 1}).times == {}


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "ascii", "latin-1", "utf-8"])
def test_a_terminal_that_lacks_a_character_gets_a_plain_one(encoding, tmp_path, monkeypatch):
    path = tmp_path / "terminal"
    with path.open("w", encoding=encoding) as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        make_printable()
        print("3×3 → 1×3, Kätzchen, 数据, \udcff")
        monkeypatch.undo()
    text = path.read_text(encoding=encoding)
    assert "3" in text
    assert "→" in text or "->" in text
    if encoding == "ascii":
        assert text == "3x3 -> 1x3, K?tzchen, ??, ?\n"


@pytest.mark.skipif(os.name == "nt", reason="the shell of POSIX closes streams")
@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_a_command_that_is_started_without_streams(closed, tmp_path):
    """It works as ever, and no file of its own is mistaken for one of them."""
    code = "from cnncompress.cli import main; import sys; main(sys.argv[1:])"
    command = shlex.join([sys.executable, "-c", code, "decompose", "digits_vgg", "--rank", "4", "--out", "run"])
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(["sh", "-c", f"{command} {closed}"], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0
    assert ("saved in run" in done.stdout) == (">&- " not in closed)
    assert "features.0" in cc.load(tmp_path / "run").cnncompress.plan.layers


@pytest.mark.slow
def test_a_command_ends_well_on_a_terminal_of_windows(tmp_path):
    out = str(tmp_path / "run")
    code = "from cnncompress.cli import main; import sys; main(sys.argv[1:])"
    found = run(code, "decompose", "digits_vgg", "--rank", "4", "--out", out, PYTHONIOENCODING="cp1252", COLUMNS="120")
    assert found.returncode == 0, found.stderr
    assert b"saved in" in found.stdout
    assert b"->" in found.stdout  # the arrow of a layer's shape
