"""Measuring itself: what is run, how often, in which state; not how long it takes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from cnncompress.chains.lowering import lower
from cnncompress.chains.modules import FactoredLayer
from cnncompress.chains.spec import Call, ConvSpec
from cnncompress.decompositions import get_method
from cnncompress.latency import chains as measure
from cnncompress.latency.chains import Job, make_input
from cnncompress.latency.runtimes import REGISTRY
from cnncompress.latency.runtimes.eager import Torch
from cnncompress.latency.setting import TimingSetting
from cnncompress.latency.table import LatencyTable

CONV = ConvSpec(4, 6, (3, 3), padding=(1, 1), bias=True)
CHAIN = get_method("spatial-svd").stages(CONV, (3,))


@pytest.fixture(autouse=True)
def small_cache(monkeypatch):
    """Clearing a large one takes longer than all chains here."""
    monkeypatch.setattr(measure, "last_cache_bytes", lambda device: 2**20)


@pytest.fixture
def seen(monkeypatch):
    """Every forward pass of a chain: the chain, the input, the weights, the state of torch."""
    calls = []
    forward = FactoredLayer.forward

    def watched(self, x):
        weights = next(self.parameters())
        calls.append((self.chain, x, weights, torch.get_num_threads(), torch.is_inference_mode_enabled()))
        return forward(self, x)

    monkeypatch.setattr(FactoredLayer, "forward", watched)
    return calls


def test_what_runs(seen):
    before = torch.get_num_threads()
    setting = TimingSetting(batch=3, threads=1, dtype="bfloat16", memory_format="channels_last")
    times = measure.measure([Job((CONV,)), Job(CHAIN)], (7, 5), setting)
    assert len(times) == 2
    assert min(times) > 0
    assert torch.get_num_threads() == before
    chains = {chain for chain, *_ in seen}
    assert chains == {(CONV,), CHAIN}
    for _, x, weight, threads, inference in seen:
        assert (x.shape, x.dtype, threads, inference) == ((3, 4, 7, 5), torch.bfloat16, 1, True)
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert weight.float().std() > 0


def test_a_lowering_that_does_not_run_takes_forever(monkeypatch):
    forward = FactoredLayer.forward

    def fails(self, x):
        if self.lowering:
            raise RuntimeError("not implemented here")
        return forward(self, x)

    monkeypatch.setattr(FactoredLayer, "forward", fails)
    jobs = [Job((CONV,)), Job(CHAIN), Job(lower(CHAIN, "pad8"), "pad8")]
    times = measure.measure(jobs, (7, 5), TimingSetting(threads=1))
    assert [ms < math.inf for ms in times] == [True, True, False]
    call = Call(0, CONV, ((7, 5),))
    (timed,) = LatencyTable(TimingSetting(threads=1), None).chains(call, get_method("spatial-svd"), [(3,)])
    assert timed.lowering == ""
    assert 0 < timed.milliseconds < math.inf


def test_turns_and_twins(seen, monkeypatch):
    monkeypatch.setattr(measure, "LONG_MS", float("inf"))
    measure.measure([Job((CONV,)), Job(CHAIN)], (7, 5), TimingSetting(threads=1))
    order = [(len(chain), weight.data_ptr()) for chain, _, weight, *_ in seen]
    rounds = order[8:]  # after two warming rounds of twin and chain each
    assert len(rounds) // 4 in range(measure.ROUNDS[0], measure.ROUNDS[1] + 1)
    assert [n for n, _ in rounds[:8]] == [1, 1, 2, 2, 2, 2, 1, 1]
    timed = {pointer for _, pointer in rounds[1::2]}
    assert len(timed) == 2
    assert not timed & {pointer for _, pointer in rounds[::2]}  # its weights were not touched since the last round


def test_no_twin_for_weights_that_fill_the_cache_and_for_long_chains(seen, monkeypatch):
    monkeypatch.setattr(measure, "last_cache_bytes", lambda device: 64)
    monkeypatch.setattr(measure, "LONG_MS", 0.0)
    measure.measure([Job(CHAIN)], (7, 5), TimingSetting(threads=1))
    assert len({weight.data_ptr() for _, _, weight, *_ in seen}) == 1
    assert measure.ROUNDS[0] + 4 <= len(seen) <= measure.ROUNDS[1] + 4


@pytest.mark.parametrize(
    ("size", "shape"),
    [((1, 1), (2, 4)), ((5, 1), (2, 5, 4))],
)
def test_inputs_of_a_linear_layer(size, shape):
    spec = ConvSpec(4, 3, linear=True)
    setting = TimingSetting(batch=2, memory_format="channels_last")
    assert make_input(spec, size, 2).shape == shape
    assert measure.measure([Job((spec,))], size, setting)[0] > 0


@pytest.mark.parametrize("name", ["bicluster-svd", "monochromatic", "cp", "tucker2"])
def test_every_kind_of_chain(name, tmp_path):
    method = get_method(name)
    spec = ConvSpec(8, 8, (3, 3), padding=(1, 1))
    ranks = sorted({method.rank(spec, share) for share in (0.25, 0.5, 1.0)})
    found = LatencyTable(TimingSetting(threads=1), None).chains(Call(0, spec, ((6, 6),)), method, ranks)
    assert len(found) == len(ranks)
    assert all(t.milliseconds > 0 for t in found)


def test_weights_are_finite_and_differ():
    tensor = nn.Parameter(torch.empty(measure.RANDOM_NUMBERS + 7))
    measure._fill(tensor, 0.02)
    assert torch.isfinite(tensor).all()
    assert float(tensor.detach().std()) == pytest.approx(0.02, rel=0.05)


def test_a_runtime_that_takes_long_to_prepare_has_its_chains_timed_in_another(monkeypatch, seen):
    class Slow(Torch):
        name, chains_in = "slow", "torch"

        def prepare(self, network, inputs, setting):
            raise AssertionError

    monkeypatch.setitem(REGISTRY, "slow", Slow())
    assert measure.measure([Job((CONV,))], (7, 5), TimingSetting("slow", threads=1))[0] > 0
    assert {len(chain) for chain, *_ in seen} == {1}
