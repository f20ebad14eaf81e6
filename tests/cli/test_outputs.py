"""Outputs that are there already, cannot be written, or do not fit the disk."""

import json
import os
import resource
import shutil
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from cnncompress.files.place import FILES
from tests.cli.conftest import listing
from tests.marks import with_slow

DECOMPOSE = ["decompose", "digits_vgg", "--rank", "4", "--out"]


def contents(folder):
    return {path: Path(path).read_bytes() for path in listing(folder) if Path(path).is_file()}


def test_an_existing_run_needs_force(run_copy, refused, done):
    before = contents("run")
    assert "run already exists" in refused(*DECOMPOSE, "run")
    assert contents("run") == before
    done("decompose", "digits_vgg", "--rank", "3", "--out", "run", "--force")
    assert contents("run") != before
    assert listing() == sorted(["run", *listing("run")])


@pytest.mark.parametrize("force", [[], ["--force"]])
@pytest.mark.parametrize("command", ["decompose", "finetune"])
@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("files", "a folder of other files"),
        ("file", "it is a file"),
        ("file/run", "file is not a folder"),
        (".", "contains the current folder"),
        ("..", "contains the current folder"),
        ("/dev/null/run", "/dev/null is not a folder"),
        ("a" * 300, "File name too long"),
    ],
)
def test_outputs_that_are_no_place_for_a_run(out, words, command, force, saved, refused):
    Path("files").mkdir()
    Path("files/notes.txt").write_text("mine")
    Path("file").touch()
    start = ["digits_vgg"] if command == "decompose" else [saved, "--data", "digits"]
    assert words in refused(command, *start, "--out", out, *force)
    assert Path("files/notes.txt").read_text() == "mine"


def test_an_unwritable_folder(refused, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write where nobody else may
    assert "no permission to write" in refused(*DECOMPOSE, "out")


@pytest.mark.parametrize(
    ("output", "words"), [("there", "--force"), ("files", "it is a folder"), ("there/x.onnx", "is not a folder")]
)
def test_export_outputs(output, words, saved, refused):
    Path("files").mkdir()
    Path("there").write_text("mine")
    assert words in refused("export", saved, "--format", "pt2", "--output", output)
    assert Path("there").read_text() == "mine"


@pytest.mark.parametrize(("output", "words"), [("files", "it is a folder"), ("there/x.md", "is not a folder")])
def test_report_outputs(output, words, saved, refused):
    Path("files").mkdir()
    Path("there").touch()
    assert words in refused("report", saved, "--output", output)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "command", [["report", "--format", "csv"], ["export", "--format", "pt2", "--force"], ["export", "--format", "onnx"]]
)
def test_nothing_is_written_over_the_files_of_a_run(name, command, run_copy, refused):
    before = contents("run")
    assert "a file of the run" in refused(command[0], "run", *command[1:], "--output", f"run/{name}")
    Path("link").symlink_to(f"run/{name}")
    assert "a file of the run" in refused(command[0], "run", *command[1:], "--output", "link")
    assert contents("run") == before


def test_a_report_replaces_texts_alone(saved, done, refused):
    Path("image.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    assert "no text, and is left alone" in refused("report", saved, "--output", "image.png")
    assert Path("image.png").read_bytes().endswith(b"IHDR")
    Path("report.md").write_text("the one before")
    done("report", saved, "--output", "report.md")
    assert "the one before" not in Path("report.md").read_text()


def test_a_report_goes_into_a_device_or_a_pipe_which_stay(saved, cli, refused, tmp_path):
    Path("null").symlink_to("/dev/null")
    assert cli("report", saved, "--output", "null").code == 0
    assert os.stat("null").st_rdev == os.stat("/dev/null").st_rdev
    os.mkfifo("pipe")
    assert "a named pipe that nobody reads" in refused("report", saved, "--output", "pipe")
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    assert cli("report", saved, "--format", "json", "--output", "pipe").code == 0
    assert json.loads(os.read(reader, 2**20))["schema"] == 1
    os.close(reader)
    assert stat.S_ISFIFO(os.stat("pipe").st_mode)
    assert "No space left" in refused("report", saved, "--output", "/dev/full")
    Path("loop").symlink_to("loop")
    assert "cannot write loop" in refused("report", saved, "--output", "loop")


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_an_export_replaces_no_device_pipe_or_socket(force, saved, refused, tmp_path):
    Path("null").symlink_to("/dev/null")
    Path("loop").symlink_to("loop")
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        for output, words in {
            "null": "a device",
            "pipe": "a named pipe",
            "socket": "a socket",
            "loop": "Too many levels",
        }.items():
            assert words in refused("export", saved, "--format", "pt2", "--output", output, *force)
    assert stat.S_ISFIFO(os.stat("pipe").st_mode)
    assert stat.S_ISCHR(os.stat("null").st_mode)


def test_a_run_that_is_called_dot_is_exported_beside_itself(run_copy, done, monkeypatch):
    monkeypatch.chdir("run")
    done("export", ".", "--format", "pt2")
    assert Path("../run.pt2").is_file()
    assert not [name for name in os.listdir() if name.startswith(".")]


@pytest.fixture
def small_files(cli):
    """A folder `disk` for files of no more than 32 KiB."""
    Path("disk").mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**15, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def small_disk(request, cli):
    """A folder `disk` that is a file system of 64 KiB; where mounting is not allowed, as `small_files`."""
    Path("disk").mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "disk"]
    if shutil.which("mount") and subprocess.run(command, capture_output=True, check=False).returncode == 0:
        yield
        subprocess.run(["umount", "-l", "disk"], check=True)
    else:
        Path("disk").rmdir()
        request.getfixturevalue("small_files")
        yield


@pytest.mark.few(1)
@pytest.mark.parametrize("room", with_slow(["small_disk", "small_files"], ["small_disk"]))
def test_a_full_disk(room, saved, refused, request):
    request.getfixturevalue(room)
    full = "space left|File too large"
    for args in (
        [*DECOMPOSE, "disk/run"],
        ["export", saved, "--format", "pt2", "--output", "disk/run.pt2"],
        ["export", saved, "--format", "onnx", "--output", "disk/run.onnx"],
        ["finetune", saved, "--data", "digits", "--out", "disk/run"],
    ):
        line = refused(*args)
        assert any(words in line for words in full.split("|")), line
        assert listing("disk") == []


def test_a_tilde_behind_an_equals_sign_is_the_home_folder(done, tmp_path, monkeypatch):
    """Shells leave `--out=~/run` as it is."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    done("decompose", "digits_vgg", "--rank", "4", "--out=~/run")
    done("report", "~/run", "--format", "csv", "--output=~/table.csv")
    assert listing("home") == sorted(["home/table.csv", "home/run", *listing("home/run")])
    assert listing() == ["home", *listing("home")]
