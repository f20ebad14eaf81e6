"""What is said while something works."""

import errno
import io
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cnncompress.terminal import console
from cnncompress.terminal.console import LOG, Steps, bar, clock, speak


@pytest.fixture(autouse=True)
def as_before():
    """The logger as a library finds it, before and after."""
    state = LOG.level, LOG.propagate, list(LOG.handlers)
    LOG.setLevel(logging.NOTSET)
    LOG.propagate, LOG.handlers[:] = True, []
    yield
    LOG.setLevel(state[0])
    LOG.propagate, LOG.handlers[:] = state[1:]


def run(steps):
    with steps("load", "load a network"):
        pass
    with steps("fit", "fit 3 layers"), steps("other", "something inside"):
        pass
    with steps("save"):
        pass


@pytest.mark.parametrize(
    ("level", "lines"),
    [
        (console.QUIET, []),
        (
            console.NORMAL,
            ["step 1 of 3: load a network (0:00)", "step 2 of 3: fit 3 layers (0:00)", "step 3 of 3: save (0:00)"],
        ),
        (
            console.VERBOSE,
            [
                "step 1 of 3: load a network (0:00)",
                "step 2 of 3: fit 3 layers (0:00)",
                "something inside (0:00)",
                "step 3 of 3: save (0:00)",
            ],
        ),
    ],
)
def test_steps_are_said_at_their_level(level, lines, capsys):
    speak(level)
    run(Steps(["load", "fit", "save"]))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == lines


def test_a_library_is_silent(capsys):
    run(Steps(["load", "fit", "save"]))
    assert capsys.readouterr() == ("", "")


def test_steps_that_fall_away_are_passed_over(capsys):
    speak(console.NORMAL)
    steps = Steps(["load", "time", "evaluate", "fit", "evaluate"])
    for name in ("load", "evaluate", "fit", "evaluate", "evaluate"):
        with steps(name):
            pass
    found = re.findall(r"step (\d) of 5: (\w+)", capsys.readouterr().err)
    assert found == [("1", "load"), ("3", "evaluate"), ("4", "fit"), ("5", "evaluate")]


def test_the_time_of_an_inner_part_is_counted_once(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    steps = Steps()
    with steps("outer"):
        now[0] += 1
        with steps("inner"):
            now[0] += 10
        now[0] += 2
    with steps("inner"):
        now[0] += 5
    assert steps.seconds == {"outer": 3, "inner": 15}
    assert str(steps).startswith("time: outer 3.0 s, inner 15.0 s")


def test_only_the_first_process_speaks(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    speak(console.VERBOSE)
    LOG.info("hello")
    assert capsys.readouterr().err == ""


def test_speaking_twice_says_a_line_once(capsys):
    LOG.addHandler(logging.NullHandler())  # somebody else's, which takes all
    speak(console.NORMAL)
    speak(console.NORMAL)
    LOG.info("hello")
    assert capsys.readouterr().err == "hello\n"


def test_bars_are_hidden_when_quiet_and_without_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    list(bar([1, 2], desc="shown"))
    assert "shown" in capsys.readouterr().err
    speak(console.QUIET)
    assert list(bar([1, 2], desc="hidden")) == [1, 2]
    assert list(bar([1, 2], desc="hidden", progress=False)) == [1, 2]
    assert capsys.readouterr().err == ""


class Gone(io.StringIO):
    """A terminal that was closed: no more of its lines are taken, the first excepted."""

    def write(self, text):
        if self.getvalue():
            raise OSError(errno.EIO, "Input/output error")
        return super().write(text)


@pytest.mark.parametrize("events", [False, True])
@pytest.mark.parametrize("closed", [False, True])
def test_work_goes_on_where_its_lines_are_not_taken(events, closed, monkeypatch):
    stream = Gone()
    monkeypatch.setattr(sys, "stderr", stream)
    speak(console.NORMAL, events)
    LOG.info("first")
    heard = stream.getvalue()
    assert "first" in heard
    if closed:
        stream.close()
    LOG.info("a line")
    LOG.error("error: the end")
    assert list(bar([1, 2], desc="a bar")) == [1, 2]
    assert closed or stream.getvalue() == heard


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.9, "0:59"), (60, "1:00"), (3723, "1:02:03")])
def test_clock(seconds, text):
    assert clock(seconds) == text


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell the peak of a process")
def test_peak_memory_is_that_of_the_process_alone():
    """Not that of a large process which starts it: 400 MB here, beside which the child is small."""
    child = "from cnncompress.terminal.console import peak_memory; print(peak_memory())"
    parent = f"import subprocess, sys; held = b'1' * (400 * 2**20); subprocess.run([sys.executable, '-c', {child!r}])"
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=True)
    assert 0 < float(re.search(r"peak memory ([\d.]+) GiB", done.stdout)[1]) < 0.3


def test_peak_memory_is_left_out_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    assert str(Steps()) == "time: "
