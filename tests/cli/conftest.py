"""The command line in this process, in an empty folder, with what it printed and wrote."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

from cnncompress.cli import main
from tests.cli.arithmetic import machine

__all__ = ["machine"]


@dataclass
class Outcome:
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


def listing(folder="."):
    """Every path below a folder, hidden ones included."""
    return sorted(str(path) for path in Path(folder).rglob("*"))


PROGRESS = re.compile(
    r"^(?:loading PyTorch|step \d+ of \d+: .* \(\d+:\d\d\)|trial \d+ of at most .*"
    r"|learning rate .*, of \d+ tried for .* on validation images"
    r"|cascade: step \d+ of \d+: .*"
    r"|(?:before training|epoch \d+ of \d+): .*|network .*: weights: .*|.*: val from .*"
    r"|evaluate .* on .*|time .* beside its original)\n",
    re.MULTILINE,
)


def complaint(err):
    """Standard error without the lines that say what is being done."""
    return PROGRESS.sub("", err)


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """Runs a command in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    torch.set_num_threads(1)

    def run(*args):
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([str(a) for a in args])
        return Outcome(exit_.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def done(cli):
    """Runs a command that must succeed; its standard output."""

    def run(*args):
        result = cli(*args)
        assert result.code == 0, result.err
        return result.out

    return run


@pytest.fixture
def refused(cli):
    """Runs a command that must fail in one line and write nothing; gives the line."""

    def run(*args, code=1):
        before = listing()
        result = cli(*args)
        assert result.code == code, result
        assert result.out == ""
        line = complaint(result.err)
        assert line.startswith("error: ")
        assert line.count("\n") == 1
        assert line.endswith("\n")
        assert listing() == before
        return line

    return run


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A run of digits_vgg at rank 4, without measured accuracy."""
    out = tmp_path_factory.mktemp("saved") / "run"
    with pytest.raises(SystemExit) as exit_:
        main(["decompose", "digits_vgg", "--rank", "4", "--out", str(out)])
    assert exit_.value.code == 0
    return out


@pytest.fixture
def run_copy(saved, cli):
    """A copy of that run as `run` in the current folder."""
    shutil.copytree(saved, "run")
    return Path("run")


@pytest.fixture(scope="session")
def processes():
    """Where new processes come from: a server that has imported the library, as importing takes seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cnncompress.api", "tests.cli.driver"])
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # for the server, which starts with the first process
    yield context
    if before is None:
        del os.environ["OMP_NUM_THREADS"]


def image_folder(root, classes=10, images=2, broken=0):
    """An ImageFolder tree; the first `broken` images of each class are no images."""
    for c in range(classes):
        folder = Path(root, f"class{c}")
        folder.mkdir(parents=True)
        for i in range(images):
            path = folder / f"{i}.png"
            if i < broken:
                path.write_bytes(b"no image")
            else:
                Image.new("RGB", (32, 32), (20 * c, 100 * i, 50)).save(path)
    return root


def edit_json(path, **changes):
    """Change keys of a JSON file."""
    values = json.loads(Path(path).read_text())
    Path(path).write_text(json.dumps(values | changes))
