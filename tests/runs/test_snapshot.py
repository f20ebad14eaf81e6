"""A reader sees one version of a run, whatever a writer does meanwhile, and nothing outside of its folder."""

import os
import time

import pytest
import torch

from cnncompress.errors import RunError
from cnncompress.files.place import CORE
from cnncompress.network.compressed import with_provenance
from cnncompress.runs import copy_run, load_run, record, save_run, snapshot
from tests.run_networks import EMPTY, FACTORY, network


@pytest.fixture
def versions(tmp_path):
    """Two runs, `0` and `1`, in which the seed and every weight are that number."""
    (tmp_path / "factory.py").write_text(FACTORY)
    net = network(tmp_path / "factory.py", "tiny")
    for value in (0, 1):
        torch.nn.init.constant_(net[0].weight, value)
        save_run(
            tmp_path / str(value), with_provenance(net), metrics={**EMPTY, "notes": [str(value)]}, info={"seed": value}
        )
    copy_run(tmp_path / "0", tmp_path / "run")
    return tmp_path


def value_of(run):
    """The number that a run holds; it must be the same in all of its files."""
    found = {run.info["seed"], int(run.metrics["notes"][0]), *run.model[0].weight.unique().tolist()}
    assert len(found) == 1, f"a mixture of {found}"
    return found.pop()


@pytest.mark.parametrize("by_folder", [True, False])
@pytest.mark.parametrize("name", CORE)
def test_a_run_that_is_replaced_between_two_files_is_read_as_one(versions, monkeypatch, name, by_folder):
    opened, replaced = snapshot.open_regular, []

    def replace_then_open(path, folder=None, follow=False):
        if os.path.basename(path) == name and not replaced:
            replaced.append(name)
            copy_run(versions / "1", versions / "run", force=True)
        return opened(path, folder, follow)

    if not by_folder:
        monkeypatch.setattr(snapshot, "_BY_FOLDER", False)
    monkeypatch.setattr(snapshot, "open_regular", replace_then_open)
    assert value_of(load_run(versions / "run", trust_code=True)) == 1
    assert replaced


def test_a_run_that_is_replaced_after_its_files_are_open_is_read_as_it_was(versions, monkeypatch):
    parsed, replaced = record.read_json, []

    def replace_then_parse(*args):
        if not replaced:
            replaced.append(True)
            copy_run(versions / "1", versions / "run", force=True)
        return parsed(*args)

    monkeypatch.setattr(record, "read_json", replace_then_parse)
    assert value_of(load_run(versions / "run", trust_code=True)) == 0
    monkeypatch.undo()
    assert value_of(load_run(versions / "run", trust_code=True)) == 1


def test_descriptors_are_closed(versions):
    folder = f"/proc/{os.getpid()}/fd"
    if not os.path.isdir(folder):
        pytest.skip("the system does not list open files")
    load_run(versions / "run", trust_code=True)
    before = len(os.listdir(folder))
    for _ in range(5):
        load_run(versions / "run", trust_code=True)
    assert len(os.listdir(folder)) == before


@pytest.mark.parametrize("name", CORE[1:])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_file_is_neither_followed_nor_waited_for(versions, name, kind):
    path = versions / "run" / name
    path.unlink()
    if kind == "link":
        path.symlink_to(versions / "0" / name)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    words = {"link": "a link", "pipe": "a named pipe", "folder": "a folder"}[kind]
    with pytest.raises(RunError, match=rf"{name} cannot be read \(it is {words}"):
        load_run(versions / "run", trust_code=True)
    with pytest.raises(RunError):
        copy_run(versions / "run", versions / "copy")
    assert not (versions / "copy").exists()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["exchange", "rename"])
def test_a_reader_during_a_thousand_replacements(versions, way):
    writer = os.fork()
    if writer == 0:
        code = 1
        try:
            if way == "rename":
                from cnncompress.files import publish

                publish._exchange = lambda first, second: False
            for i in range(1000):
                copy_run(versions / str((i + 1) % 2), versions / "run", force=True)
            code = 0
        finally:
            os._exit(code)
    end, seen = time.monotonic() + 120, []
    while True:
        ended, status = os.waitpid(writer, os.WNOHANG)
        if ended:
            break
        assert time.monotonic() < end
        seen.append(value_of(load_run(versions / "run", trust_code=True)))
    assert os.waitstatus_to_exitcode(status) == 0
    assert set(seen) == {0, 1}
    assert value_of(load_run(versions / "run", trust_code=True)) == 0
    assert sorted(os.listdir(versions)) == ["0", "1", "factory.py", "run"]
