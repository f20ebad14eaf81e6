"""`--json` and `--log` of commands."""

import json
import os
import sys
from subprocess import run

import pytest


def events(err):
    """The objects of a standard error that holds nothing else."""
    return [json.loads(line) for line in err.splitlines()]


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_command_tells_objects_and_ends_with_its_code(where, saved, cli):
    args = ["--json", "profile", saved] if where == "before" else ["profile", saved, "--json"]
    done = cli(*args)
    assert done.code == 0
    assert "params" in done.out
    found = events(done.err)
    assert [(one["step"], one["of"]) for one in found if one["event"] == "step"] == [(1, 2), (2, 2)]
    assert (found[-1]["event"], found[-1]["code"]) == ("end", 0)


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["profile", "--nope", "--json"], 2),
        (["--json", "xyz"], 2),
        (["profile", "digits_vgg", "-v", "-q", "--json"], 2),
        (["report", "nowhere", "--json"], 1),
    ],
)
def test_an_error_is_an_object_with_the_exit_code(args, code, cli):
    done = cli(*args)
    (error,) = events(done.err)
    assert (done.code, error["event"], error["code"]) == (code, "error", code)
    assert error["message"]
    assert done.out == ""
    assert not cli("profile", "--nope").err.startswith("{")  # the next command speaks to people


def test_a_run_names_its_parts_and_where_it_is(cli):
    done = cli("decompose", "digits_vgg", "--data", "digits", "--rank", "8", "--out", "run", "--json")
    assert done.code == 0, done.err
    found = events(done.err)
    assert [one["path"] for one in found if one["event"] == "written"] == ["run"]
    (times,) = [one["seconds"] for one in found if one["event"] == "times"]
    assert {one["name"] for one in found if one["event"] == "step"} <= set(times)
    evaluated = [one for one in found if one["event"] == "progress" and one["name"] == "evaluate"]
    assert evaluated[-1]["done"] == evaluated[-1]["of"]


def test_a_log_has_the_command_its_lines_and_its_error(saved, cli, tmp_path):
    assert cli("-q", "profile", saved, "--log", "a.log").err == ""
    assert cli("report", "nowhere", "--log", "a.log").code == 1
    lines = [line[20:] for line in (tmp_path / "a.log").read_text().splitlines()]
    assert [line for line in lines if line.startswith("debug: 0.")]
    assert any(line.startswith("info: step 2 of 2") for line in lines)
    assert lines[-1].startswith("error: no run at nowhere")


def test_a_log_that_cannot_be_written_is_refused(refused):
    assert "--log nowhere/a.log: No such file" in refused("methods", "--log", "nowhere/a.log", code=2)


def test_an_interruption_during_imports_is_an_object(tmp_path):
    command = [sys.executable, "-m", "tests.cli.driver", "torch", "1", "profile", "digits_vgg", "--json"]
    paths = [os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)})
    assert done.returncode == 1
    assert events(done.stderr)[-1] | {"time": ""} == {
        **{"time": "", "event": "error", "code": 1},
        "message": "interrupted; nothing is left half-written",
    }
