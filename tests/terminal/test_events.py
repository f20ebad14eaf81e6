"""What is said to programs and to a file."""

import json
import warnings
from datetime import UTC, datetime, timedelta

import pytest

from cnncompress.terminal import console
from cnncompress.terminal.console import LOG, Steps, bar, log_to, speak, stop_logging
from cnncompress.terminal.events import EVENT, event
from tests.terminal.test_console import as_before

__all__ = ["as_before"]


@pytest.fixture(autouse=True)
def listening(monkeypatch):
    """The hook of Python's warnings is put back."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)


def told(capsys):
    """The objects on stderr, without their times."""
    found = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    times = [datetime.fromisoformat(one.pop("time")) for one in found]
    assert all(timedelta() <= datetime.now(UTC) - time < timedelta(hours=1) for time in times)
    assert times == sorted(times)
    return found


def test_steps_are_objects(capsys):
    speak(console.NORMAL, events=True)
    with Steps(["load", "fit"])("fit", "fit 3 layers"):
        pass
    step = {"event": "step", "name": "fit", "step": 2, "of": 2, "what": "fit 3 layers"}
    assert told(capsys) == [step | {"message": "step 2 of 2: fit 3 layers (0:00)"}]


def test_messages_and_warnings_have_their_level(capsys):
    speak(console.NORMAL, events=True)
    LOG.info("two\nlines\x1b[31m")
    LOG.warning("warning: careful")
    warnings.warn("an old name", FutureWarning, stacklevel=1)
    assert told(capsys) == [
        {"event": "message", "level": "info", "message": "two lines[31m"},
        {"event": "message", "level": "warning", "message": "careful"},
        {"event": "message", "level": "warning", "message": "FutureWarning: an old name"},
    ]


def test_a_bar_tells_where_it_begins_and_ends(capsys):
    speak(console.NORMAL, events=True)
    assert list(bar(range(40), desc="count", unit="image", leave=False)) == list(range(40))
    ends = {"event": "progress", "name": "count", "of": 40, "unit": "image"}
    assert told(capsys) == [ends | {"done": 0}, ends | {"done": 40}]


def test_a_bar_that_is_slow_tells_on_its_way(capsys):
    speak(console.NORMAL, events=True)
    with bar(total=3, desc="slow", unit="trial", leave=False) as steps:
        for _ in range(3):
            steps.last_print_t -= 2  # as if two seconds had passed
            steps.update()
    assert [one["done"] for one in told(capsys)] == [0, 1, 2, 3]


def test_quiet_leaves_warnings_and_errors(capsys):
    speak(console.QUIET, events=True)
    list(bar([1], desc="hidden"))
    LOG.info("no")
    LOG.log(EVENT, "ended", extra=event("end", code=0))
    LOG.warning("yes")
    assert [one["message"] for one in told(capsys)] == ["yes"]


def test_lines_for_people_have_no_events(capsys):
    speak(console.VERBOSE)
    LOG.log(EVENT, "ended", extra=event("end", code=0))
    assert capsys.readouterr().err == ""


def test_a_file_has_every_line_with_its_time_and_level_and_goes_on(tmp_path, capsys):
    place = tmp_path / "run.log"
    for _ in range(2):
        speak(console.QUIET)
        log_to(place)
        LOG.debug("detail")
        LOG.warning("warning: one\nline")
        stop_logging()
        LOG.warning("after")
    lines = place.read_text(encoding="utf-8").splitlines()
    assert [line[20:] for line in lines] == ["debug: detail", "warning: one line"] * 2
    assert all(datetime.fromisoformat(line[:19]) for line in lines)
    assert capsys.readouterr().err == "warning: one\nline\nafter\n" * 2


def test_a_file_that_takes_no_more_is_given_up_in_one_line(capsys, tmp_path, monkeypatch):
    speak(console.NORMAL)
    log_to(tmp_path / "run.log")

    def full(self, record):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cnncompress.terminal.console.LogFile.format", full)
    LOG.info("one")
    LOG.info("two")
    err = capsys.readouterr().err.splitlines()
    assert [line for line in err if "nothing more is written" not in line] == ["one", "two"]
    assert [line for line in err if "No space left on device" in line] == [
        f"warning: nothing more is written to {tmp_path / 'run.log'}: [Errno 28] No space left on device"
    ]


def test_other_processes_of_a_training_write_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    speak(console.NORMAL)
    log_to(tmp_path / "run.log")
    LOG.warning("hello")
    assert not (tmp_path / "run.log").exists()
