"""Other work on the machine: waited for a little, then said."""

from __future__ import annotations

import time

import pytest
import torch

from cnncompress.latency import busy
from cnncompress.latency.setting import TimingSetting

spread = busy.spread  # as it is: the tests' default knows no other work
HERE = [TimingSetting(threads=2)]


@pytest.fixture
def waited(monkeypatch):
    """A clock that only moves while one waits."""
    now = [0.0]
    monkeypatch.setattr(busy.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(busy.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return now


def test_other_work_that_ends_is_waited_for(monkeypatch, waited):
    spreads = iter([3.0, 1.6, 1.2])
    monkeypatch.setattr(busy, "spread", lambda threads: next(spreads))
    assert busy.wait_for_quiet(HERE) == ""
    assert waited == [2 * busy.PAUSE_SECONDS]


def test_other_work_that_does_not_end_is_said(monkeypatch, waited):
    monkeypatch.setattr(busy, "spread", lambda threads: 2.0)
    assert "the machine had other work" in busy.wait_for_quiet(HERE)
    assert busy.WAIT_SECONDS < waited[0] <= busy.WAIT_SECONDS + 2 * busy.PAUSE_SECONDS


def test_as_many_threads_as_are_timed_are_watched(monkeypatch):
    asked = []
    monkeypatch.setattr(busy, "spread", lambda threads: asked.append(threads) or 1.0)
    busy.wait_for_quiet([TimingSetting(threads=1), TimingSetting(threads=3)])
    assert asked == [3]
    busy.wait_for_quiet([])
    assert asked == [3]


def test_runs_of_which_some_take_longer(monkeypatch):
    """Thirty of forty runs take a second, ten take four: the run at eight tenths is one of these."""
    now, runs = [0.0], iter([1.0] * 30 + [4.0] * 10)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch, "mm", lambda a, b: now.__setitem__(0, now[0] + next(runs)))
    before = torch.get_num_threads()
    assert spread(2) == pytest.approx(4.0)
    assert torch.get_num_threads() == before
