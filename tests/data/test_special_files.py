"""What may stand in a folder of images beside images: pipes, sockets, devices, links."""

import os
import socket

import pytest

from cnncompress.data import load_data, make_loader
from cnncompress.errors import DataError
from tests.data.helpers import PLAIN, refused, tree

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")


@pytest.fixture
def folder(tmp_path):
    return tree(tmp_path / "data", {"a": 2, "b": 2})


def test_what_is_no_file_is_skipped_and_named(folder, monkeypatch, caplog):
    os.mkfifo(folder / "a" / "pipe.png")
    (folder / "a" / "zero.png").symlink_to("/dev/zero")
    monkeypatch.chdir(folder / "b")  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.png")
        data = load_data(str(folder), PLAIN, 2)
        assert sum(len(y) for _, y in make_loader(data.val, 8)) == 4
    assert data.skipped == ["a/pipe.png", "a/zero.png", "b/socket.png"]
    line = caplog.text
    assert "a named pipe, not a regular file" in line
    assert "a link out of the folder" in line


def test_a_link_to_an_image_within_the_folder_is_followed_and_one_out_of_it_is_not(folder, tmp_path):
    (folder / "a" / "within.png").symlink_to(folder / "b" / "0.png")
    tree(tmp_path / "other", {"a": 1})
    (folder / "a" / "without.png").symlink_to(tmp_path / "other" / "a" / "0.png")
    data = load_data(str(folder), PLAIN, 2)
    assert sum(len(y) for _, y in make_loader(data.val, 8)) == 5
    assert data.skipped == ["a/without.png"]


@pytest.mark.parametrize("target", ["/", "..", ".", "../../data", "self"])
def test_links_to_folders_that_are_not_walked(folder, target, caplog):
    (folder / "a" / "self").symlink_to(target)
    data = load_data(str(folder), PLAIN, 2)
    assert sum(len(y) for _, y in make_loader(data.val, 8)) == 4
    assert "a/self" in caplog.text


def test_a_class_folder_that_is_a_link_out_is_refused(folder, tmp_path):
    tree(tmp_path / "other", {"c": 1})
    (folder / "c").symlink_to(tmp_path / "other" / "c")
    assert "c is a link out of the folder" in refused(DataError, str(folder), 3)
    (folder / "c").unlink()
    (folder / "c").symlink_to(".")
    assert "c is a link to a folder that it is in" in refused(DataError, str(folder), 3)


def test_the_data_folder_and_its_parts_may_be_links(folder, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "val").symlink_to(folder)
    (tmp_path / "link").symlink_to("set")
    data = load_data(str(tmp_path / "link"), PLAIN, 2)
    assert sum(len(y) for _, y in make_loader(data.val, 8)) == 4
