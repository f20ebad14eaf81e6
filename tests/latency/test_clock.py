"""The clock under a stopwatch that is a formula: turns, rounds, disturbance."""

from __future__ import annotations

import pytest

from cnncompress.latency import clock
from cnncompress.latency.clock import Prepared, Rounds, Samples, in_turns, percentiles


def stopwatch(call):
    return float(call())


@pytest.fixture
def log():
    return []


def prepared(log, name, milliseconds=1):
    def run():
        log.append(name)
        return milliseconds

    return Prepared(run, lambda: log.append(f"<{name}"), lambda: log.append(f"{name}>"))


def test_turns(log):
    calls = [prepared(log, "a", 1), prepared(log, "b", 2)]
    found = in_turns(calls, stopwatch, Rounds(warmup=1, least=2, seconds=0), lambda: log.append("|"))
    assert "".join(log) == "ab" + "|<aaa><bbb>" + "|<bbb><aaa>"
    assert [samples.milliseconds for samples in found] == [[1, 1], [2, 2]]


def test_more_rounds_while_others_break_in(monkeypatch, log):
    switches = iter([0, 1, 1, 2, 2, 3, 3, 3, 3, 3, 3, 3])  # the first three rounds are disturbed
    monkeypatch.setattr(clock, "preemptions", lambda: next(switches))
    rounds = Rounds(warmup=0, least=3, seconds=0, undisturbed=True, most=9)
    (found,) = in_turns([prepared(log, "a", 5)], stopwatch, rounds)
    assert found.alone == [False] * 3 + [True] * 3
    assert found.undisturbed == [5, 5, 5]


def test_at_most_so_many_rounds(monkeypatch, log):
    count = iter(range(100))
    monkeypatch.setattr(clock, "preemptions", lambda: next(count))  # every round is disturbed
    (found,) = in_turns([prepared(log, "a")], stopwatch, Rounds(warmup=0, least=2, seconds=0, undisturbed=True, most=5))
    assert len(found.milliseconds) == 5
    assert found.undisturbed == []


def test_two_undisturbed_times_are_not_enough():
    assert Samples([1.0, 2.0, 9.0], [True, True, False]).undisturbed == []


def test_percentiles():
    assert percentiles([float(x) for x in range(1, 12)]) == (6, 2, 10)


def test_nothing_to_time():
    assert in_turns([], stopwatch, Rounds(seconds=0)) == []
