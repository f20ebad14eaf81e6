"""One writer at a time, whoever dies, and nothing left of the lock."""

import errno
import os
import sys
import threading
import time

import pytest

from cnncompress.errors import RunError
from cnncompress.runs import lock
from cnncompress.runs.lock import reserved, writing

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that are made quickly")


class Holder:
    """A process that holds the lock of `target` until it is told to stop, or dies."""

    def __init__(self, target, dies=False):
        ready, self.told = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                with writing(target):
                    os.write(ready[1], b"x")
                    if dies:
                        os._exit(9)
                    os.read(self.told[0], 1)
            finally:
                os._exit(0)
        os.read(ready[0], 1)
        if dies:
            os.waitpid(self.pid, 0)

    def stop(self):
        os.write(self.told[1], b"x")
        os.waitpid(self.pid, 0)


@pytest.mark.parametrize("name", ["run", "n" * 250])
def test_a_second_writer_is_told_who_the_first_is(tmp_path, name, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/cnncompress", "finetune", "my run"])
    holder = Holder(tmp_path / name)
    with pytest.raises(RunError) as caught, writing(tmp_path / name):
        pass
    words = str(caught.value)
    assert f"is being written by process {holder.pid} on {os.uname().nodename}" in words
    assert "(`cnncompress finetune 'my run'`)" in words
    assert time.strftime("since %Y-") in words
    assert "\n" not in words
    with writing(tmp_path / "another"):
        pass
    holder.stop()
    with writing(tmp_path / name):
        assert len(os.listdir(tmp_path)) == 2
    assert os.listdir(tmp_path) == []


def test_what_a_dead_process_left_blocks_nobody_and_is_cleaned_up(tmp_path):
    Holder(tmp_path / "run", dies=True)
    assert sorted(os.listdir(tmp_path)) == [".run.lock", ".run.lock.json"]
    with writing(tmp_path / "run"):
        pass
    assert os.listdir(tmp_path) == []


def test_who_it_is_may_be_garbled(tmp_path):
    holder = Holder(tmp_path / "run")
    for content in (
        b"",
        b"{",
        b"[1]",
        b"[" * 100_000,
        b'{"host": "\\u001b[31m", "pid": 1, "command": "", "since": ""}',
    ):
        (tmp_path / ".run.lock.json").write_bytes(content)
        with pytest.raises(RunError, match="is being written by") as caught, writing(tmp_path / "run"):
            pass
        assert str(caught.value).isprintable()
    holder.stop()


def test_the_lock_is_taken_again_within_and_refused_to_other_threads(tmp_path):
    found = []

    def other():
        try:
            with writing(tmp_path / "run"):
                found.append("in")
        except RunError:
            found.append("refused")

    with writing(tmp_path / "run"), writing(tmp_path / "run"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    other()
    assert found == ["refused", "in"]


def test_folders_that_were_missing_go_again(tmp_path):
    with reserved(tmp_path / "a" / "b" / "run"):
        assert (tmp_path / "a" / "b").is_dir()
    assert os.listdir(tmp_path) == []
    with reserved(tmp_path / "a" / "b" / "run"):
        (tmp_path / "a" / "b" / "run").mkdir()
    assert (tmp_path / "a" / "b" / "run").is_dir()


def test_never_two_at_once_although_the_file_comes_and_goes(tmp_path):
    target, inside, children = tmp_path / "run", tmp_path / "inside", []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            code, done, end = 1, 0, time.monotonic() + 30
            try:
                while done < 40 and time.monotonic() < end:
                    try:
                        with writing(target):
                            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails where another is inside
                            os.unlink(inside)
                            done += 1
                    except RunError:
                        time.sleep(0.0005)
                code = 0 if done == 40 else 2
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [NotImplementedError(), OSError(errno.ENOLCK, "no locks available")])
def test_without_locks_in_the_file_system_a_line_says_so(tmp_path, monkeypatch, caplog, error):
    def missing(*args, **kwargs):
        raise error

    monkeypatch.setattr(lock.FileLock, "acquire", missing)
    with writing(tmp_path / "run"):
        pass
    assert "has no locks" in caplog.text
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="no permission to write"), reserved(tmp_path / "run"):
        pass
