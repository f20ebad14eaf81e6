"""ONNX Runtime as a runtime: it computes what the network does, in the setting that is asked for."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from cnncompress.chains.modules import FactoredLayer
from cnncompress.chains.spec import ConvSpec
from cnncompress.decompositions import get_method
from cnncompress.errors import CompressError
from cnncompress.latency.chains import Job, fill_randomly, measure
from cnncompress.latency.machine import complete
from cnncompress.latency.network import latency
from cnncompress.latency.runtimes import get_runtime
from cnncompress.latency.setting import TimingSetting
from tests.cli.conftest import cli, done  # noqa: F401
from tests.timing import ONCE

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SETTING = TimingSetting("onnxruntime", threads=1)
IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def small():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()


def run(prepare, network, inputs):
    runtime = get_runtime("onnxruntime")
    with runtime.running(SETTING):
        return prepare(runtime)(network, inputs, complete(SETTING))


@pytest.mark.parametrize("batch", [1, 3])
def test_it_computes_what_the_network_does(batch):
    network = small()
    call = run(lambda runtime: runtime.prepare, network, IMAGES[:batch])
    assert torch.allclose(torch.from_numpy(call()[0]), network(IMAGES[:batch]), atol=1e-5)
    options = call.func.__self__.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


@pytest.mark.parametrize("pads", [nn.ZeroPad2d((0, 1, 0, 1)), nn.ZeroPad2d(1), nn.Identity()])
def test_integers_of_a_traced_network_are_those_of_an_exported_one(pads, monkeypatch):
    """Paddings are those of the convolutions, and every layer computes in integers."""
    programs = []
    runtime = get_runtime("onnxruntime")
    monkeypatch.setattr(type(runtime), "load", lambda self, program, *_: programs.append(program) or (lambda: None))
    network = nn.Sequential(
        pads, nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 8, 1)
    ).eval()
    setting = complete(SETTING.within("onnxruntime:int8"))
    with runtime.running(setting):
        for prepare in (runtime.prepare_chain, runtime.prepare):
            prepare(network, IMAGES, setting)
    traced, exported = (Counter(n.op_type for n in onnx.load_from_string(p).graph.node) for p in programs)
    assert traced == exported
    assert set(traced) == {"Conv", "QuantizeLinear", "DequantizeLinear"}


@pytest.mark.parametrize("name", ["spatial-svd", "bicluster-svd", "cp", "root"])
def test_it_computes_what_a_chain_does(name):
    method, spec = get_method(name), ConvSpec(8, 8, (3, 3), padding=(1, 1))
    chain = FactoredLayer(method.stages(spec, method.rank(spec, 0.5))).eval()
    with torch.no_grad():
        fill_randomly(chain)
    x = torch.randn(2, 8, 5, 5, generator=torch.Generator().manual_seed(0))
    call = run(lambda runtime: runtime.prepare_chain, chain, x)
    assert torch.allclose(torch.from_numpy(call()[0]), chain(x), atol=1e-5)


def test_chains_are_timed(monkeypatch):
    monkeypatch.setattr("cnncompress.latency.chains.last_cache_bytes", lambda device: 64)
    linear = ConvSpec(6, 4, linear=True)
    assert all(ms > 0 for ms in measure([Job((linear,)), Job(get_method("svd").stages(linear, (2,)))], (5, 1), SETTING))


@pytest.mark.slow
def test_networks_of_other_precisions():
    with pytest.raises(CompressError, match="give --runtime onnxruntime:fp32"):
        latency({"a": small().double()}, IMAGES, SETTING, ONCE)
    found = latency({"a": small().double()}, IMAGES, SETTING.within("onnxruntime:fp32"), ONCE)["a"]
    assert (found.setting.dtype, found.setting.memory_format) == ("float32", "")


@pytest.mark.slow
def test_what_it_cannot_run_is_said_in_one_line():
    class Loop(nn.Module):
        def forward(self, x):
            return x[:, :, 0, 0] if float(x.sum()) > 0 else x[:, :, 1, 1]

    with pytest.raises(CompressError, match="cannot export this network") as error:
        latency({"a": Loop()}, IMAGES, SETTING, ONCE)
    assert "\n" not in str(error.value)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(CompressError, match=r"the runtime onnxruntime is not available.*pip install"):
        latency({"a": small()}, IMAGES, SETTING, ONCE)


@pytest.mark.slow
def test_what_comes_out_is_timed_in_it(done):  # noqa: F811
    """By rank: whether a budget of milliseconds can be met hangs on the machine."""
    options = ("--rank", "0.5", "--method", "spatial-svd", "--layers", "features.1*", "--threads", "1")
    text = done("decompose", "digits_vgg", *options, "--runtime", "onnxruntime", "--out", "run")
    assert " in onnxruntime: median and percentiles" in text
    rows = json.loads(Path("run/metrics.json").read_text())["rows"]
    assert {row["latency_ms"]["runtime"] for row in rows} == {"onnxruntime"}
    assert rows[1]["latency_ms"]["original"] == rows[0]["latency_ms"]["median"]
