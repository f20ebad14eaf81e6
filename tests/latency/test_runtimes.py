"""What holds for every registered runtime in each of its precisions."""

from __future__ import annotations

import gc
import time
import weakref
from contextlib import suppress
from functools import cache

import pytest
import torch
from torch import nn

from cnncompress.chains.modules import FactoredLayer
from cnncompress.chains.spec import ConvSpec
from cnncompress.decompositions import get_method
from cnncompress.errors import CompressError, UsageError
from cnncompress.latency.chains import fill_randomly
from cnncompress.latency.machine import complete, identity
from cnncompress.latency.network import latency
from cnncompress.latency.runtimes import REGISTRY, check_available, compiled, get_runtime
from cnncompress.latency.setting import TimingSetting, in_runtimes
from cnncompress.network import compiling
from tests.marks import with_slow
from tests.timing import ONCE

WAYS = [
    pytest.param(f"{name}:{word}", marks=[pytest.mark.slow] if name == "torch-compile" else [])  # seconds a network
    for name, runtime in sorted(REGISTRY.items())
    for word in runtime.precisions
]
# Of the largest output: rounding of sums in fp32, then 8 or 11 bits of a few numbers in a row, then 8 bits of a range.
TOLERANCES = {"fp32": 1e-5, "fp64": 1e-12, "bf16": 3e-2, "fp16": 5e-3, "int8": 6e-2}
IMAGES = torch.randn(2, 4, 12, 12, generator=torch.Generator().manual_seed(0))


def setting_of(way):
    """One thread of the CPU in a runtime and precision; skips where that is not here."""
    setting = TimingSetting(threads=1, batch=len(IMAGES)).within(way)
    with suppress(CompressError):
        return complete(setting)
    pytest.skip(f"no {way} here")


def chain(method, spec, rank):
    layer = FactoredLayer(get_method(method).stages(spec, rank)).eval()
    with torch.no_grad():
        fill_randomly(layer)
    return layer


class Convolutions(nn.Module):
    """Strided, grouped, depthwise and dilated ones beside each other: one program for all of them."""

    def __init__(self):
        super().__init__()
        self.strided = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(4, 8, (3, 1), groups=2, padding=(1, 0))
        self.depthwise = nn.Conv2d(4, 8, 3, groups=4, bias=False)
        self.dilated = nn.Conv2d(4, 3, 3, dilation=2)

    def forward(self, images):
        return torch.cat([layer(images).flatten(1) for layer in self.children()], 1)


def permuted():
    return chain("monochromatic", ConvSpec(4, 8, (3, 3), padding=(1, 1)), (2,))


def separated():
    return chain("spatial-svd", ConvSpec(4, 8, (3, 3), stride=(2, 1), padding=(1, 1)), (5,))


def whole():
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


NETWORKS = [Convolutions, permuted, separated, whole]


def made(network):
    torch.manual_seed(0)
    return network().eval()


def answer(output):
    """The first output of a call, whatever the runtime gives it in."""
    first = output if isinstance(output, torch.Tensor) else output[0]
    return torch.as_tensor(first).double()


@cache
def differs(way, kind, prepare):
    """The largest difference of a kind of network from eager single precision, over the largest output."""
    setting, network = setting_of(way), made(kind)
    runtime, expected = get_runtime(setting.runtime), network(IMAGES).detach().double()
    with runtime.running(setting):
        call = getattr(runtime, prepare)(network, IMAGES, setting)
        found, again = answer(call()), answer(call())
    assert found.shape == expected.shape
    assert torch.equal(found, again)
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("network", with_slow(NETWORKS, NETWORKS[:-1]))
@pytest.mark.parametrize("way", WAYS)
def test_a_network_gives_what_it_gives_in_torch(way, network):
    tolerance = TOLERANCES[way.partition(":")[2]]
    assert differs(way, network, "prepare") <= max(tolerance, 1e-6)


@pytest.mark.parametrize("network", [permuted, separated])
@pytest.mark.parametrize("way", WAYS)
def test_so_does_a_chain(way, network):
    tolerance = TOLERANCES[way.partition(":")[2]]
    assert differs(way, network, "prepare_chain") <= max(tolerance, 1e-6)


@pytest.mark.parametrize("way", [way for way in WAYS if way.values[0].endswith((":bf16", ":int8"))])
def test_it_computes_in_the_precision(way):
    """A random network of several layers comes out otherwise than in single precision."""
    assert differs(way, whole, "prepare") > 1e-5


@pytest.mark.few(1)
@pytest.mark.parametrize("way", WAYS)
def test_it_leaves_nothing_behind(way):
    """Its threads wait, PyTorch is as it was, and the network can go."""
    setting, network = setting_of(way), made(whole)
    runtime, gone = get_runtime(setting.runtime), weakref.ref(network)
    before = torch.get_num_threads(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    setting = complete(TimingSetting(threads=2, batch=len(IMAGES)).within(way))
    with runtime.running(setting):
        call = runtime.prepare(network, IMAGES, setting)
        for _ in range(5):
            call()
    assert (torch.get_num_threads(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
    time.sleep(0.1)
    busy, start = time.process_time(), time.perf_counter()
    time.sleep(0.2)
    assert time.process_time() - busy < 0.5 * (time.perf_counter() - start)
    del call, network
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("way", WAYS)
def test_networks_are_timed_in_it(way):
    setting = setting_of(way)
    found = latency({"a": made(whole)}, IMAGES, setting, ONCE)["a"]
    assert found.median > 0
    assert found.setting.label == way.removesuffix(":fp32")


def test_times_in_each_are_kept_apart():
    settings = [
        setting_of(f"{name}:{REGISTRY[name].precisions[0]}") for name in REGISTRY if not REGISTRY[name].missing()
    ]
    keys = [identity(setting) for setting in settings]
    assert len({key["runtime"] for key in keys}) == len(keys)
    assert all(key["version"] and key["dtype"] and key["threads"] == 1 and key["machine"] for key in keys)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_an_unknown_precision_is_refused_in_one_line(name):
    with pytest.raises(UsageError, match=rf"{name} has no precision 'int3' \(it has fp32") as error:
        in_runtimes(TimingSetting(), [f"{name}:int3"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("way", ["openvino:bf16", "torch-compile:bf16"])
def test_a_processor_without_bf16_says_so(monkeypatch, way):
    runtime, _, precision = way.partition(":")
    monkeypatch.setattr(compiled, "features", lambda: frozenset({"avx2"}))
    monkeypatch.setattr("cnncompress.network.openvino.has_bf16", lambda: False)
    if get_runtime(runtime).missing():
        pytest.skip(f"no {runtime} here")
    with pytest.raises(
        CompressError, match=f"no {way} here: this processor .*; give --runtime {runtime}:fp32"
    ) as error:
        complete(TimingSetting().within(way))
    assert "\n" not in str(error.value)
    assert complete(TimingSetting().within(runtime)).runtime == runtime
    assert precision in get_runtime(runtime).precisions


@pytest.mark.parametrize(
    ("name", "package", "words"),
    [
        ("onnxruntime", "onnxruntime", r"pip install 'cnncompress\[onnx\]'"),
        ("openvino", "openvino", r"pip install 'cnncompress\[openvino\]'"),
    ],
)
def test_what_to_install_is_said(monkeypatch, name, package, words):
    monkeypatch.setattr("cnncompress.network.onnx.find_spec", lambda one: None if one == package else one)
    monkeypatch.setattr("cnncompress.network.openvino.find_spec", lambda one: None if one == package else one)
    with pytest.raises(CompressError, match=rf"{name} is not available: {package} is not installed: {words}"):
        check_available(name)


def test_without_a_compiler(monkeypatch):
    monkeypatch.setattr(compiling.shutil, "which", lambda one: None)
    with pytest.raises(CompressError, match=r"torch-compile is not available: .*C\+\+ compiler; install"):
        check_available("torch-compile")
