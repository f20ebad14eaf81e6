"""Times of whole networks and of their layers: what runs, in which order, in which setting."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cnncompress.chains.spec import ConvSpec
from cnncompress.decompositions import get_method
from cnncompress.errors import CompressError, UsageError
from cnncompress.latency.clock import Rounds
from cnncompress.latency.machine import identity
from cnncompress.latency.network import latency, layer_latencies
from cnncompress.latency.runtimes.eager import Torch
from cnncompress.latency.setting import TimingSetting, in_runtimes
from cnncompress.network.swap import apply_plan
from cnncompress.planning import plan
from tests.timing import ONCE

IMAGE = torch.ones(1, 1, 2, 2)


class Recorder(nn.Module):
    def __init__(self, name, order):
        super().__init__()
        self.name, self.order = name, order
        self.conv = nn.Conv2d(1, 1, 1)

    def forward(self, x):
        self.order.append((self.name, tuple(x.shape), torch.is_inference_mode_enabled(), torch.get_num_threads()))
        return self.conv(x)

    def __deepcopy__(self, memo):
        clone = Recorder(self.name, self.order)
        clone.load_state_dict(self.state_dict())
        return clone


def test_latency_takes_turns():
    order = []
    models = {name: Recorder(name, order) for name in "abc"}
    before = torch.get_num_threads()
    rounds = Rounds(warmup=1, least=4, seconds=0)
    found = latency(models, torch.ones(2, 1, 4, 4), TimingSetting(batch=3, threads=1), rounds)
    assert "".join(name for name, *_ in order) == "abc" + "abc" + "bca" + "cab" + "abc"
    assert {entry[1:] for entry in order} == {((3, 1, 4, 4), True, 1)}
    assert torch.get_num_threads() == before
    assert list(found) == ["a", "b", "c"]
    assert all(m.training for m in models.values())
    for value in found.values():
        assert 0 < value.p10 <= value.median <= value.p90
        assert value.setting == TimingSetting("torch", "float32", "cpu", 3, 1, "contiguous")


def test_latency_percentiles(monkeypatch):
    times = iter(range(1, 12))
    monkeypatch.setattr(Torch, "milliseconds", lambda self, call, setting: next(times))
    found = latency({"a": nn.Flatten()}, IMAGE, rounds=Rounds(least=11, seconds=0))["a"]
    assert (found.p10, found.median, found.p90) == (2, 6, 10)


def test_latency_runs_for_some_seconds():
    order = []
    latency({"a": Recorder("a", order)}, IMAGE, rounds=Rounds(warmup=0, least=1, seconds=0.05))
    assert len(order) > 5


@pytest.mark.parametrize("own", [torch.float32, torch.float64])
def test_latency_in_channels_last_and_the_dtype_of_the_network(own):
    seen = []

    class Net(nn.Conv2d):
        def forward(self, x):
            seen.append((x.dtype, x.is_contiguous(memory_format=torch.channels_last), self.weight.stride()))
            return super().forward(x)

    model = Net(3, 4, 3).to(own)
    setting = TimingSetting(memory_format="channels_last", dtype="bfloat16" if own == torch.float32 else "")
    found = latency({"a": model}, torch.ones(1, 3, 8, 8), setting, ONCE)
    expected = torch.bfloat16 if own == torch.float32 else torch.float64
    assert set(seen) == {(expected, True, (27, 1, 9, 3))}
    assert f"torch.{found['a'].setting.dtype}" == str(expected)
    assert found["a"].setting.memory_format == "channels_last"
    assert model.weight.is_contiguous()
    assert model.weight.dtype == own


def test_each_network_in_its_own_memory_format():
    seen = {}

    class Net(nn.Conv2d):
        def forward(self, x):
            seen[self.out_channels] = (x.is_contiguous(), self.weight.is_contiguous())
            return super().forward(x)

    plain, last = Net(3, 4, 3), Net(3, 5, 3).to(memory_format=torch.channels_last)
    found = latency({"plain": plain, "last": last}, torch.ones(1, 3, 8, 8), rounds=ONCE)
    assert seen == {4: (True, True), 5: (False, False)}
    formats = {name: value.setting.memory_format for name, value in found.items()}
    assert formats == {"plain": "contiguous", "last": "channels_last"}


def test_latency_by_layer():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 2))
    image = torch.randn(1, 3, 8, 8)
    planned = plan(model, image, layers=["2"], rank=2)
    weights = {"2": get_method("spatial-svd").factorize(model[2].weight, ConvSpec(8, 8, (3, 3)), (2,))}
    found = layer_latencies({"": apply_plan(model, planned, weights)}, image, rounds=ONCE)[""]
    assert list(found) == ["0", "2", "4"]
    assert all(0 < value.p10 <= value.median <= value.p90 for value in found.values())
    assert not any(m._forward_hooks for m in model.modules())


def test_layers_of_networks_in_turns(monkeypatch):
    order = []
    models = {name: nn.Sequential(Recorder(name, order)) for name in "ab"}
    clock = iter(range(100))
    monkeypatch.setattr("cnncompress.latency.runtimes.eager.time.perf_counter", lambda: next(clock) / 1000)
    found = layer_latencies(models, IMAGE, rounds=Rounds(warmup=1, least=2, seconds=-1))
    assert "".join(name for name, *_ in order) == "ab" + "ab" + "ba"
    assert {name: list(layers) for name, layers in found.items()} == {"a": ["0.conv"], "b": ["0.conv"]}
    assert found["a"]["0.conv"].median == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch": 0}, "batch size is 0"),
        ({"threads": 0}, "number of threads is 0"),
        ({"dtype": "float23"}, "did you mean 'float32'"),
        ({"memory_format": "channel_last"}, "did you mean 'channels_last'"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"runtime": "torches"}, "did you mean 'torch'"),
    ],
)
def test_settings_that_make_no_sense(options, words):
    for attempt in (lambda s: latency({"a": nn.Flatten()}, IMAGE, s), identity):
        with pytest.raises(UsageError, match=words) as error:
            attempt(TimingSetting(**options))
        assert "\n" not in str(error.value)


def test_latency_without_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CompressError, match="no CUDA GPU"):
        latency({"a": nn.Flatten()}, IMAGE, TimingSetting(device="cuda"))


def test_a_setting_in_several_runtimes():
    base = TimingSetting(batch=4, threads=1, memory_format="channels_last")
    found = in_runtimes(base, ["torch:bf16", "torch", "torch:bf16"])
    assert [(one.label, one.dtype, one.memory_format, one.batch) for one in found] == [
        ("torch:bf16", "bfloat16", "channels_last", 4),
        ("torch", "", "channels_last", 4),
    ]
    assert in_runtimes(base, []) == (base,)
    with pytest.raises(UsageError, match=r"no precision 'fp8'.*it has fp32, bf16"):
        in_runtimes(base, ["torch:fp8"])


def test_a_plan_is_timed_as_chains_are_where_the_runtime_can(monkeypatch):
    """Made ready in the quick way, or else as the network is exported."""
    asked = []

    def quick(self, chain, inputs, setting):
        asked.append(type(chain).__name__)
        if isinstance(chain, nn.Flatten):
            raise CompressError("not plain")
        return lambda: None

    monkeypatch.setattr(Torch, "prepare_chain", quick)
    models = {"plain": nn.Identity(), "other": nn.Flatten()}
    assert set(latency(models, IMAGE, rounds=ONCE, quickly=True)) == {"plain", "other"}
    assert asked == ["Identity", "Flatten"]
    latency(models, IMAGE, rounds=ONCE)
    assert asked == ["Identity", "Flatten"]
