"""What `force` replaces, what stays, and what is never taken for a run."""

import errno
import json
import os
import socket
import stat

import pytest
import torch

from cnncompress.errors import RunError
from cnncompress.network.compressed import with_provenance
from cnncompress.runs import check_output, copy_run, load, save, save_run, update_run, write
from tests.run_networks import EMPTY, FACTORY, network, randomise

POSIX = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")


@pytest.fixture
def factory(tmp_path):
    path = tmp_path / "factory.py"
    path.write_text(FACTORY)
    return path


@pytest.fixture
def net(factory):
    return network(factory, "tiny")


@pytest.fixture
def run(tmp_path, net):
    save(net, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    "content",
    [
        '{"scripts": {}}',
        "[]",
        "{",
        '{"format": 1}',
        '{"format": 1, "source": {}}',
        '{"format": "1", "source": {}, "versions": {}}',
        '{"name": "x", "version": "1.0", "versions": {}}',
        "\0",
    ],
)
def test_a_run_json_of_something_else_makes_no_run(tmp_path, net, content):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "run.json").write_text(content)
    (folder / "thesis.txt").write_text("years")
    with pytest.raises(RunError, match=r"folder of other files.*left alone"):
        save(net, folder, force=True)
    assert (folder / "run.json").read_text() == content
    assert (folder / "thesis.txt").read_text() == "years"


@POSIX
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_run_json_that_is_no_file_makes_no_run(tmp_path, run, net, kind):
    folder = tmp_path / "project"
    folder.mkdir()
    if kind == "link":
        (folder / "run.json").symlink_to(run / "run.json")
    else:
        os.mkfifo(folder / "run.json")
    with pytest.raises(RunError, match="left alone"):
        save(net, folder, force=True)
    assert stat.S_IFMT(os.lstat(folder / "run.json").st_mode) == (stat.S_IFLNK if kind == "link" else stat.S_IFIFO)


def users_files(run):
    (run / "notes.md").write_text("mine")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.pt").write_text("hours")
    (run / "empty" / "deep").mkdir(parents=True)
    (run / "script.sh").write_text("#!/bin/sh\n")
    (run / "script.sh").chmod(0o750)
    return {path.relative_to(run): path.lstat().st_mode for path in run.rglob("*") if path.name not in os.listdir(run)}


def test_force_keeps_what_is_no_part_of_a_run(run, net, caplog):
    before = users_files(run)
    run.chmod(0o700)
    with caplog.at_level("INFO", "cnncompress"):
        save(randomise(net), run, force=True)
    assert "checkpoints, empty, notes.md, script.sh" in caplog.text
    assert (run / "notes.md").read_text() == "mine"
    assert (run / "checkpoints" / "last.pt").read_text() == "hours"
    assert (run / "script.sh").stat().st_mode & 0o777 == 0o750
    assert run.stat().st_mode & 0o777 == 0o700
    assert {path: (run / path).lstat().st_mode for path in before} == before
    assert torch.equal(load(run, trust_code=True)[0].weight, net[0].weight)


def test_what_a_killed_training_left_half_written_does_not_go_along(run, net):
    (run / "checkpoints").mkdir()
    for path in ("checkpoints/last.pt", "checkpoints/.last.pt.tmp", ".history.jsonl.tmp", "checkpoints/.own.tmp"):
        (run / path).write_text(path)
    save(net, run, force=True)
    assert sorted(os.listdir(run / "checkpoints")) == [".own.tmp", "last.pt"]
    assert (run / "checkpoints" / "last.pt").read_text() == "checkpoints/last.pt"
    assert not (run / ".history.jsonl.tmp").exists()


def test_a_copy_keeps_the_files_of_the_run_that_it_replaces_and_takes_none_along(tmp_path, run, net):
    users_files(run)
    save(randomise(net), tmp_path / "other")
    copy_run(tmp_path / "other", run, force=True)
    assert (run / "notes.md").read_text() == "mine"
    assert torch.equal(load(run, trust_code=True)[0].weight, net[0].weight)
    copy_run(run, tmp_path / "third")
    assert not (tmp_path / "third" / "notes.md").exists()


def test_a_damaged_run_is_not_copied(tmp_path, run):
    path = run / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match="checksum differs"):
        copy_run(run, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@POSIX
def test_links_pipes_and_sockets_in_a_run_stay_what_they_are(tmp_path, run, net, monkeypatch):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("K")
    (run / "extra").symlink_to(tmp_path / "secret")
    (run / "key").symlink_to("../secret/key")
    (run / "nowhere").symlink_to("nothing")
    os.mkfifo(run / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(run)
        listener.bind("socket")
        monkeypatch.chdir(tmp_path)
        kinds = {path.name: stat.S_IFMT(path.lstat().st_mode) for path in run.iterdir()}
        update_run(run, info={"seed": 1})
        save(net, run, force=True)
        assert {path.name: stat.S_IFMT(path.lstat().st_mode) for path in run.iterdir()} == kinds
    assert os.readlink(run / "key") == "../secret/key"
    assert [path.name for path in (tmp_path / "secret").iterdir()] == ["key"]


@POSIX
@pytest.mark.parametrize("name", ["model.safetensors", "network.pt2", "metrics.json"])
def test_a_link_in_the_place_of_a_file_of_the_run_is_not_replaced(tmp_path, run, net, name):
    (tmp_path / "store").write_text("elsewhere")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(tmp_path / "store")
    for write_again in (lambda: save(net, run, force=True), lambda: update_run(run, info={"seed": 1})):
        with pytest.raises(RunError, match=rf"{name} is a link, and is not replaced"):
            write_again()
    assert (run / name).is_symlink()
    assert (tmp_path / "store").read_text() == "elsewhere"


@POSIX
def test_a_pipe_in_the_place_of_a_side_product_stays(run, net, caplog):
    os.mkfifo(run / "side.bin")
    save_run(
        run, with_provenance(net), metrics=EMPTY, force=True, sides={"side.bin": lambda path: path.write_text("new")}
    )
    assert stat.S_ISFIFO((run / "side.bin").lstat().st_mode)
    assert "the run has no new side.bin: it is a named pipe" in caplog.text


@POSIX
def test_a_pipe_that_cannot_be_linked_is_named(run, net, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EPERM, "no hard links here")

    os.mkfifo(run / "pipe")
    (run / "notes.md").write_text("mine")
    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(RunError, match="pipe is a named pipe and cannot be taken along"):
        save(net, run, force=True)
    (run / "pipe").unlink()
    save(net, run, force=True)
    assert (run / "notes.md").read_text() == "mine"


def test_what_arrives_while_a_run_is_replaced_is_not_lost(run, net, monkeypatch):
    users_files(run)
    written = write.save_tensors

    def meanwhile(path, state):
        written(path, state)
        (run / "new.txt").write_text("new")

    def late(temporary, target, force):
        if target != run:
            return move(temporary, target, force)
        (run / "later.txt").write_text("later")
        (run / "checkpoints" / "extra").write_text("x")
        os.replace(run / "new.txt", run / "renamed.txt")
        (run / "edited").write_text("edited")
        os.replace(run / "edited", run / "notes.md")  # as editors save
        return move(temporary, target, force)

    from cnncompress.files import publish

    move = publish._move
    monkeypatch.setattr(write, "save_tensors", meanwhile)
    monkeypatch.setattr(publish, "_move", late)
    save(net, run, force=True)
    for name, text in {
        "new.txt": "new",
        "renamed.txt": "new",
        "later.txt": "later",
        "checkpoints/extra": "x",
        "notes.md": "edited",
    }.items():
        assert (run / name).read_text() == text


def test_a_side_product_that_fails_is_left_out_and_told(tmp_path, net, caplog):
    def full(path):
        path.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    sides = {"big.bin": full, "small.txt": lambda path: path.write_text("whole")}
    save_run(tmp_path / "run", with_provenance(net), metrics=EMPTY, sides=sides)
    assert sorted(set(os.listdir(tmp_path / "run")) & sides.keys()) == ["small.txt"]
    assert "the run has no new big.bin" in caplog.text
    load(tmp_path / "run", trust_code=True)


# --- names ---


@pytest.mark.parametrize("name", ["n" * 250, "n" * 255, "ü" * 125, "a.b-c", ".hidden", "new\nline", "-rf"])
def test_odd_names_of_runs(tmp_path, net, name):
    for _ in range(2):
        save(net, tmp_path / name, force=True)
    update_run(tmp_path / name, info={"seed": 5})
    assert json.loads((tmp_path / name / "run.json").read_text())["seed"] == 5
    assert sorted(os.listdir(tmp_path)) == sorted(["factory.py", name])


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_a_name_that_is_not_utf8(tmp_path, net):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff")
    save_run(path, with_provenance(net), metrics=EMPTY, info={"command": ["cnncompress", "--out", path]})
    save(net, path, force=True)
    assert torch.equal(load(path, trust_code=True)[0].weight, net[0].weight)


@pytest.mark.parametrize("name", ["n" * 256, "n" * 300 + "/run", "missing/" + "n" * 256])
def test_names_that_are_too_long_are_refused_before_any_work(tmp_path, name):
    with pytest.raises(RunError, match=r"longer than|too long"):
        check_output(tmp_path / name)
