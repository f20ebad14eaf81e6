"""What no part of the program has foreseen: one line, exit code 1, and a file with the traceback."""

import tempfile

import pytest
import torch

from cnncompress.errors import during, in_layer, place


def failing(error):
    """A command that fails deep inside."""

    @in_layer
    def fit(name):
        raise error

    def run(*asked):
        with during("calibrate"):
            fit("features.3")

    return run


@pytest.fixture
def fails(refused, monkeypatch, tmp_path):
    """The one line of a command that meets an error."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def run(error):
        monkeypatch.setattr("cnncompress.api.run_inspect", failing(error))
        return refused("inspect", "digits_vgg")

    return run


@pytest.mark.parametrize(
    "error", [KeyError("a key"), AssertionError(), RuntimeError("aten::x\nmore"), RecursionError()]
)
def test_a_fault_is_one_line_that_names_phase_layer_and_file(error, cli, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("cnncompress.api.run_inspect", failing(error))
    result = cli("inspect", "digits_vgg")
    assert result.code == 1
    assert result.err.count("\n") == 1
    assert "(calibrate, layer features.3)" in result.err
    (path,) = tmp_path.glob("cnncompress-error-*.txt")
    assert str(path) in result.err
    text = path.read_text()
    assert "Traceback (most recent call last)" in text
    assert type(error).__name__ in text
    assert "command: " in text


def test_where_the_file_cannot_be_written_the_line_says_so(fails, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere/at/all")
    assert "traceback could not be written (No such file or directory)" in fails(KeyError("a key"))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory: you tried"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
    ],
)
def test_too_little_memory_is_said_with_a_remedy(error, fails, tmp_path):
    line = fails(error)
    assert line.startswith("error: out of memory (calibrate, layer features.3); try a smaller --batch-size")
    assert not list(tmp_path.glob("*.txt"))


@pytest.mark.parametrize("code", [0, None, 3])
def test_code_of_a_network_that_ends_the_program_is_no_success(code, fails):
    assert "ended the program" in fails(SystemExit(code))


def test_an_exception_knows_what_was_being_done():
    error = KeyError()
    with pytest.raises(KeyError), during("outer"), during("inner"), during("inner"):
        raise error
    assert place(error) == ["outer", "inner"]


@pytest.mark.parametrize("args", [["profile", "digits_vgg"], ["decompose", "digits_vgg", "--budget", "latency=0.9"]])
def test_more_threads_than_a_machine_can_start_are_refused(args, refused):
    assert "number of threads is 100000" in refused(*args, "--threads", "100000", code=2)


def test_more_workers_than_a_machine_can_start_are_refused(refused):
    assert "--workers" in refused("evaluate", "digits_vgg", "--data", "digits", "--workers", "100000", code=2)


def test_an_input_larger_than_memory_is_refused(refused):
    assert "out of memory" in refused("profile", "digits_vgg", "--input-size", "3000000")
