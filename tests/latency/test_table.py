"""The table of times: what is measured, what is kept, how it is put together."""

from __future__ import annotations

import json

import pytest

from cnncompress.chains.spec import Call, ConvSpec, chain_macs, chain_params
from cnncompress.decompositions import get_method
from cnncompress.latency import table
from cnncompress.latency.chains import Job
from cnncompress.latency.machine import cache_folder
from cnncompress.latency.setting import TimingSetting
from cnncompress.latency.table import WEIGHTS_TOGETHER, LatencyTable, by_memory
from cnncompress.latency.wanted import Wanted

SPEC = ConvSpec(16, 16, (3, 3), padding=(1, 1))
CALL = Call(0, SPEC, ((8, 8), (8, 8), (4, 4)))
SPATIAL = get_method("spatial-svd")
RANKS = [(4,), (8,), (16,)]


class Machine:
    """Takes a millisecond for 1000 multiply-accumulates, times its load; remembers what it was asked."""

    def __init__(self):
        self.next_load, self.asked = lambda: 1.0, []

    def __call__(self, jobs, size, setting):
        self.asked.append((tuple(jobs), size))
        load = self.next_load()
        return [load * chain_macs(job.chain, size) / 1000 for job in jobs]


@pytest.fixture
def machine(monkeypatch):
    found = Machine()
    monkeypatch.setattr(table, "measure", found)
    return found


def test_the_time_of_a_layer_over_all_its_calls(machine, tmp_path):
    found = LatencyTable(TimingSetting(), tmp_path).dense(CALL)
    assert found == pytest.approx(16 * 16 * 9 * (64 + 64 + 16) / 1000)
    assert [size for _, size in machine.asked] == [(8, 8), (4, 4)]


def test_chains_beside_the_layer_and_from_the_disk(machine, tmp_path):
    first = LatencyTable(TimingSetting(), tmp_path).chains(CALL, SPATIAL, RANKS)
    assert all(jobs[0] == Job((SPEC,)) for jobs, _ in machine.asked)
    at = [rank * (48 + 48) * 144 / 1000 for rank in (8, 8, 16)]
    assert [t.milliseconds for t in first] == pytest.approx(at)
    asked = len(machine.asked)
    again = LatencyTable(TimingSetting(), tmp_path)
    assert again.chains(CALL, SPATIAL, RANKS) == first
    assert again.dense(CALL) == pytest.approx(16 * 16 * 9 * 144 / 1000)
    assert len(machine.asked) == asked


def test_without_a_cache_nothing_is_written(machine, tmp_path, monkeypatch):
    monkeypatch.setenv("CNNCOMPRESS_CACHE", str(tmp_path))
    found = LatencyTable(TimingSetting(), None)
    assert found.dense(CALL) == found.dense(CALL)
    assert len(machine.asked) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "other",
    [
        TimingSetting(batch=2),
        TimingSetting(threads=7),
        TimingSetting(dtype="bfloat16"),
        TimingSetting(memory_format="channels_last"),
    ],
)
def test_each_setting_has_its_own_times(machine, tmp_path, other):
    LatencyTable(TimingSetting(threads=1), tmp_path).dense(CALL)
    LatencyTable(TimingSetting(threads=1), tmp_path).dense(CALL)
    assert len(machine.asked) == 2
    LatencyTable(other, tmp_path).dense(CALL)
    assert len(machine.asked) == 4


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text("{"),
        lambda path: path.write_text("[]"),
        lambda path: path.write_bytes(b"\xff\xfe"),
        lambda path: path.write_text("[" * 100_000),
        lambda path: path.write_text(path.read_text().replace('"schema"', '"schema": 2, "schema"')),
        lambda path: path.write_text(path.read_text().replace('"schema": 2', '"schema": 1')),
        lambda path: path.write_text(path.read_text().replace('"size": [8, 8]', '"size": [9, 9]')),
        lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"times": {"x": "fast"}})),
        lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"times": {"x": float("nan")}})),
        lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"times": 3})),
    ],
)
def test_a_damaged_file_is_measured_again(machine, tmp_path, damage):
    call = Call(0, SPEC, ((8, 8),))
    expected = LatencyTable(TimingSetting(), tmp_path).dense(call)
    (path,) = tmp_path.rglob("*.json")
    whole = path.read_text()
    damage(path)
    assert path.read_bytes() != whole.encode()
    assert LatencyTable(TimingSetting(), tmp_path).dense(call) == expected
    assert path.read_text() == whole
    assert len(machine.asked) == 2


def test_a_folder_that_cannot_be_written_is_no_error(machine, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert LatencyTable(TimingSetting(), tmp_path / "file").dense(CALL) > 0
    assert (tmp_path / "file").read_text() == "mine"


def test_on_a_busy_machine_it_tries_again_and_keeps_nothing(machine, tmp_path):
    call = Call(0, SPEC, ((8, 8),))
    layer, chain = 16 * 16 * 9 * 64 / 1000, 8 * 96 * 64 / 1000
    loads = iter([1.0, 3.0, 2.0, 4.0, 1.1])
    machine.next_load = lambda: next(loads)
    assert LatencyTable(TimingSetting(), tmp_path).dense(call) == pytest.approx(layer)
    busy = LatencyTable(TimingSetting(), tmp_path)
    assert busy.chain(call, SPATIAL.stages(SPEC, (8,))) == pytest.approx(2 * chain)
    assert busy.dense(call) == pytest.approx(layer)
    assert busy.chain(call, SPATIAL.stages(SPEC, (8,))) == pytest.approx(2 * chain)  # without another measurement
    quiet = LatencyTable(TimingSetting(), tmp_path)
    assert quiet.chain(call, SPATIAL.stages(SPEC, (8,))) == pytest.approx(1.1 * chain)
    assert quiet.dense(call) == pytest.approx(layer)
    assert len(machine.asked) == 5


def test_what_is_known_stays_as_it_is(machine, tmp_path):
    """A layer that turns out to be faster beside another chain keeps its time in this process."""
    call = Call(0, SPEC, ((8, 8),))
    loads = iter([1.0, 0.5])
    machine.next_load = lambda: next(loads)
    found = LatencyTable(TimingSetting(), tmp_path)
    before = found.dense(call)
    found.chain(call, SPATIAL.stages(SPEC, (8,)))
    assert found.dense(call) == before
    assert LatencyTable(TimingSetting(), tmp_path).dense(call) == pytest.approx(0.5 * before)


def test_times_within_the_network_scale_all_others(machine):
    other = Call(1, ConvSpec(16, 8, (3, 3), padding=(1, 1)), ((8, 8),))
    calls = {"a": CALL, "b": other, "never timed": CALL}
    found = LatencyTable(TimingSetting(), None)
    alone = found.dense(CALL), found.dense(other)
    plain = found.chains(CALL, SPATIAL, RANKS)
    for _ in range(2):  # settling anew starts afresh
        found.settle(calls, {"a": 1.5 * alone[0], "b": 1.5 * alone[1], "unknown": 7.0})
        assert found.dense(other) == pytest.approx(1.5 * alone[1])
        settled = found.chains(CALL, SPATIAL, RANKS)
        assert [t.milliseconds for t in settled] == pytest.approx([1.5 * t.milliseconds for t in plain])
        assert found.chain(CALL, SPATIAL.stages(SPEC, (8,))) == pytest.approx(1.5 * 8 * 96 * 144 / 1000)
    found.settle(calls, {"a": 2 * alone[0], "b": 0.0})
    assert found.dense(CALL) == pytest.approx(alone[0] * 2 * alone[0] / sum(alone))
    found.settle(calls, {})
    assert found.dense(CALL) == alone[0]


def test_large_chains_are_not_in_memory_together():
    half = Job((ConvSpec(2**14, 2**12, linear=True),))
    assert chain_params(half.chain) == WEIGHTS_TOGETHER // 2
    more = Job((ConvSpec(2**14, 2**13, linear=True),))
    assert by_memory([half, half, half]) == [[half, half], [half]]
    assert by_memory([more, half]) == [[more], [half]]
    assert by_memory([]) == [[]]


def test_where_times_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("CNNCOMPRESS_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("CNNCOMPRESS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "cnncompress"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "cnncompress"


class Slow(Machine):
    """A machine whose every chain takes a second of a clock to measure."""

    def __init__(self):
        super().__init__()
        self.now = 0.0

    def __call__(self, jobs, size, setting):
        self.now += len(jobs)
        return super().__call__(jobs, size, setting)


def wanted(call, method=SPATIAL):
    return Wanted(call, method, [(k,) for k in range(8, call.spec.out_channels + 1, 8)])


@pytest.fixture
def slow(monkeypatch):
    found = Slow()
    monkeypatch.setattr(table, "measure", found)
    monkeypatch.setattr(table.time, "perf_counter", lambda: found.now)
    return found


LARGE = Call(0, ConvSpec(128, 128, (3, 3), padding=(1, 1)), ((32, 32),))
SMALL = Call(1, ConvSpec(96, 96, (3, 3), padding=(1, 1)), ((2, 2),))


def test_layers_of_one_shape_are_measured_once_all_their_chains_together(slow):
    found = LatencyTable(TimingSetting(), None)
    again, other = (Call(2, LARGE.spec, LARGE.sizes, kept) for kept in ("", "x"))
    found.learn([wanted(LARGE), wanted(again), wanted(other, get_method("channel-svd"))])
    ((jobs, size),) = slow.asked
    assert size == (32, 32)
    assert len(jobs) == len(set(jobs)) == 1 + 2 * 8  # the layer, and both methods at 8, 16, 24, 32, 48, 64, 96, 128
    assert [t.milliseconds for t in found.chains(again, SPATIAL, [(8,), (40,), (128,)])] == pytest.approx(
        [k * 2 * 3 * 128 * 1024 / 1000 for k in (8, 40, 128)]
    )
    assert len(slow.asked) == 1


def test_seconds_go_to_large_layers_first_and_every_layer_has_its_ends(slow, tmp_path):
    found = LatencyTable(TimingSetting(), tmp_path)
    found.learn([wanted(SMALL), wanted(LARGE)], seconds=9.0)
    (large, size), (small, _) = slow.asked
    assert size == (32, 32)
    assert len(small) == 3  # the layer and both ends
    assert len(small) < len(large) <= 10
    line = [t.milliseconds for t in found.chains(SMALL, SPATIAL, [(8,), (56,), (96,)])]
    assert line == pytest.approx([k * 2 * 3 * 96 * 4 / 1000 for k in (8, 56, 96)])  # time is MACs here
    assert len(slow.asked) == 2
    more = LatencyTable(TimingSetting(), tmp_path)
    more.learn([wanted(SMALL), wanted(LARGE)])  # what is known from before is not measured again
    assert [(len(jobs), size) for jobs, size in slow.asked[2:]] == [(1 + 5, (2, 2))]
