"""Ctrl-C in every phase of every command: one line, exit code 1, nothing half-written."""

import errno
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import cnncompress as cc
from cnncompress.cli import _on_interrupt
from cnncompress.terminal.stops import stop_signals
from tests.cli import driver
from tests.cli.conftest import complaint, listing

QUIET = "error: interrupted; nothing is left half-written\n"
DECOMPOSE = ["decompose", "digits_vgg", "--rank", "4", "--data", "digits", "--out", "out"]
FINETUNE = ["finetune", "run", "--data", "digits", "--epochs", "2", "--batch-size", "128", "--lr", "0.01"]
HANGUP = getattr(signal, "SIGHUP", signal.SIGTERM)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.getcwd()}


@pytest.fixture
def interrupted(processes, tmp_path):
    """Runs a command that is met by signals at a place; its standard error."""

    def run(place, count, args, *numbers):
        process = processes.Process(target=driver.run_in, args=(str(tmp_path), place, count, args, *numbers))
        process.start()
        process.join(timeout=120)
        out, err = (tmp_path / name for name in (".out", ".err"))
        found = (process.exitcode, out.read_text(), err.read_text())
        out.unlink()
        err.unlink()
        assert found[:2] == (1, ""), found
        return complaint(found[2])

    return run


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("place", "count", "args"),
    [
        ("cnncompress.pipeline.opened:load_model", 1, DECOMPOSE),
        pytest.param("cnncompress.network.evaluate:check_labels", 2, DECOMPOSE, marks=pytest.mark.slow),
        ("cnncompress.decompositions.spatial_svd:SpatialSVD.group_factorize", 3, DECOMPOSE),
        pytest.param("cnncompress.runs.write:save_tensors", 1, DECOMPOSE, marks=pytest.mark.slow),
        ("cnncompress.files.publish:_move", 1, DECOMPOSE),
        ("cnncompress.latency.clock:_sample", 5, ["report", "run", "--latency", "--output", "report.md"]),
        ("cnncompress.pipeline.inspect:inspect_layers", 1, ["inspect", "run"]),
        ("torch.onnx:export", 1, ["export", "run", "--format", "onnx", "--output", "run.onnx"]),
        pytest.param("torch.export:save", 1, ["export", "run", "--format", "pt2"], marks=pytest.mark.slow),
        ("cnncompress.network.evaluate:check_labels", 1, [*FINETUNE, "--out", "out"]),
    ],
)
def test_nothing_is_written(place, count, args, run_copy, tmp_path, interrupted):
    before = listing(tmp_path)
    assert interrupted(place, count, args) == QUIET
    assert listing(tmp_path) == before


@pytest.mark.few(1)
@pytest.mark.parametrize("number", [signal.SIGTERM, HANGUP])
def test_other_signals_to_stop_are_met_alike(number, run_copy, tmp_path, interrupted):
    before = listing(tmp_path)
    assert interrupted("cnncompress.files.publish:_move", 1, DECOMPOSE, number) == QUIET
    assert listing(tmp_path) == before


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "place",
    [
        "cnncompress.network.evaluate:check_labels",
        "cnncompress.runs.write:save_tensors",
        "cnncompress.files.publish:_move",
    ],
)
def test_a_second_signal_leaves_the_tidying_up_alone(place, run_copy, tmp_path, interrupted):
    before = listing(tmp_path)
    assert interrupted(place, 1, DECOMPOSE, signal.SIGINT, signal.SIGTERM) == QUIET
    assert listing(tmp_path) == before


ENDING = """
import os, signal, threading, time

def meet():
    threading.main_thread().join()  # the interpreter ends, and waits for this thread
    os.kill(os.getpid(), signal.{name})
    time.sleep(0.1)

threading.Thread(target=meet).start()
from cnncompress.cli import main
main()
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize(("args", "code"), [(["methods"], 0), (["method"], 2)])
def test_a_signal_at_the_very_end_changes_nothing(name, args, code):
    command = [sys.executable, "-c", ENDING.format(name=name), *args]
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == code
    assert ended.stderr.count("\n") == (code != 0), ended.stderr


STRAYS = """
import os, signal, threading, time
from cnncompress.cli import frame, main, methods

class Gone:
    def __del__(self):
        {finalizer}

def command(**values):
    frame.nothing_to_import()
    Gone()
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    time.sleep({seconds})

methods.command.callback = command
main()
"""


@pytest.mark.parametrize(
    ("finalizer", "seconds", "code", "said"),
    [('raise ValueError("late")', 0, 0, ""), ("os.kill(os.getpid(), signal.SIGTERM)", 20, 1, QUIET)],
)
def test_what_nobody_can_catch_is_a_line_at_most(finalizer, seconds, code, said):
    """An interruption that reaches a finalizer, where Python ignores exceptions, still stops the program."""
    command = [sys.executable, "-c", STRAYS.format(finalizer=finalizer, seconds=seconds), "methods"]
    began = time.monotonic()
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    warning = "warning: a thread raised ZeroDivisionError: division by zero\n"
    assert (ended.returncode, ended.stderr) == (code, warning + said)
    assert time.monotonic() - began < 15


def test_what_an_interruption_breaks_is_an_interruption(cli, monkeypatch):
    def broken(*args):
        try:
            raise KeyboardInterrupt
        finally:
            raise AttributeError("half-made")

    monkeypatch.setattr("cnncompress.api.run_inspect", broken)
    result = cli("inspect", "digits_vgg")
    assert (result.code, complaint(result.err)) == (1, QUIET)


def test_a_call_leaves_signals_as_they_were(cli):
    before = [signal.getsignal(number) for number in stop_signals()]
    assert cli("methods").code == cli("--version").code == 0
    assert [signal.getsignal(number) for number in stop_signals()] == before


def without_times(path):
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in path.read_text().splitlines()]


@pytest.fixture(scope="session")
def straight(saved, tmp_path_factory):
    """The run, fine-tuned without an interruption."""
    out = tmp_path_factory.mktemp("straight") / "run"
    with pytest.raises(SystemExit):
        driver.run("cnncompress.cli:main", 0, ["finetune", str(saved), *FINETUNE[2:], "--out", str(out)])
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "count", "numbers"),
    [
        ("cnncompress.finetuning.trainer:Trainer._step", 12, [signal.SIGINT, signal.SIGTERM]),
        pytest.param("cnncompress.finetuning.batches:Batches.read", 12, [HANGUP], marks=pytest.mark.slow),
        pytest.param("cnncompress.runs.write:save_tensors", 1, [signal.SIGTERM], marks=pytest.mark.slow),
    ],
)
def test_finetune_says_how_to_go_on_and_goes_on(place, count, numbers, run_copy, straight, tmp_path, done, interrupted):
    before = (run_copy / "model.safetensors").read_bytes()
    words = interrupted(place, count, FINETUNE, *numbers)
    assert words == "error: interrupted; run has a checkpoint: go on with the same command and --resume\n"
    assert (run_copy / "model.safetensors").read_bytes() == before
    assert not [path for path in listing(tmp_path) if "tmp" in path.rpartition("/")[2]]
    cc.load(run_copy)
    done(*FINETUNE, "--resume")
    found, expected = (cc.load(path).state_dict() for path in (run_copy, straight))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert without_times(run_copy / "history.jsonl") == without_times(straight / "history.jsonl")


def begin_on_terminal(terminal, request):
    """In a new process: lead a session, and with a `request` have it be that of the terminal, whose end is SIGHUP."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.setsid()
    if request is not None:
        import fcntl

        fcntl.ioctl(terminal, request, 0)


@pytest.mark.slow
@pytest.mark.parametrize("told", [True, False])
def test_a_terminal_that_is_closed(told, run_copy, straight, tmp_path, done):
    """It ends the training with a checkpoint, or the training goes on where it does not tell, as to another session."""
    termios = pytest.importorskip("termios")
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "cnncompress", *FINETUNE]
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    begin = functools.partial(begin_on_terminal, theirs, termios.TIOCSCTTY if told else None)
    with subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, preexec_fn=begin, **streams) as process:
        os.close(theirs)
        seen = b""
        while b"epoch 1 of 2" not in seen:
            seen += os.read(ours, 4096)
        os.close(ours)
        assert process.wait(timeout=120) == 1  # the result cannot be printed in any case
    assert told == ("finetune" not in json.loads((run_copy / "run.json").read_text()))
    if told:
        done(*FINETUNE, "--resume")
    found, expected = (cc.load(path).state_dict() for path in (run_copy, straight))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_end_of_a_terminal_during_imports(monkeypatch):
    def ended(code):
        raise SystemExit(code)

    def gone(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("cnncompress.cli.is_working", lambda: False)
    monkeypatch.setattr(os, "_exit", ended)
    monkeypatch.setattr(os, "write", gone)
    with pytest.raises(SystemExit, match="1"):
        _on_interrupt(HANGUP, None)


def test_an_interrupted_start_leaves_an_earlier_training(run_copy, interrupted):
    for name in ("checkpoints/last.pt", "checkpoints/best.safetensors", "history.jsonl"):
        (run_copy / name).parent.mkdir(exist_ok=True)
        (run_copy / name).write_text("earlier")
    before = {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()}
    assert interrupted("cnncompress.network.evaluate:check_labels", 1, FINETUNE) == QUIET
    assert {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()} == before


def start(command, folder):
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-m", *command], cwd=folder, env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True
    )


@pytest.mark.few(1)
@pytest.mark.parametrize("module", ["torch.nn", "torchvision.datasets", "cnncompress.runs.read"])
def test_during_imports(module, tmp_path):
    with start(["tests.cli.driver", module, "1", *DECOMPOSE], tmp_path) as process:
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out, complaint(err)) == (1, "", QUIET)
    assert listing(tmp_path) == []


def test_from_outside(tmp_path):
    """The command as users start it, interrupted at work on a network too large to be done soon."""
    with start(["cnncompress", "decompose", "vgg19", "--weights", "none", "--out", "out"], tmp_path) as process:
        while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
            time.sleep(0.05)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out, complaint(err)) == (1, "", QUIET)
    assert listing(tmp_path) == []
