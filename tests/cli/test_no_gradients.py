"""Networks that let no gradient through: quantised layers, and forward passes without gradients."""

import pytest
import torch

from cnncompress.chains.modules import FactoredLayer
from cnncompress.runs import load
from tests.deprecated import still_has

CODE = """
import warnings
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10),
    )

def quantised():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(net(), {nn.Linear})

def another():
    made = net()
    torch.seed()
    with torch.no_grad():
        made[6].weight.uniform_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(made, {nn.Linear})

class Apart(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()
    def forward(self, x):
        with torch.no_grad():
            return self.net(x)
"""

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
quantises = still_has("ao.quantization.quantize_dynamic")


@pytest.fixture
def own(tmp_path):
    (tmp_path / "net.py").write_text(CODE)


@quantises
def test_the_float_layers_of_a_quantised_network_are_decomposed(own, done, cli):
    said = done("decompose", "net.py:quantised", "--input-size", 32, "--rank", 0.25, "--out", "run")
    assert "6._packed_params.dtype and 3 more cannot be stored in a run" in said
    assert "its weight is quantised" in said
    small = load("run", trust_code=True)
    assert isinstance(small.get_submodule("2"), FactoredLayer)
    kept = small.get_submodule("6").weight()
    assert kept.is_quantized
    assert torch.equal(kept.dequantize(), load("run", trust_code=True).get_submodule("6").weight().dequantize())
    done("evaluate", "run", "--trust-code", "--data", "digits")
    for command, words in (
        (["finetune", "run", "--trust-code", "--data", "digits"], "is no plain tensor, as in a quantised layer"),
        (["evaluate", "run", "--data", "digits"], "needs the code of the file"),
        (["export", "run", "--trust-code", "--format", "onnx"], "cannot export this network"),
    ):
        result = cli(*command)
        assert result.code in (1, 2)
        assert words in result.err.splitlines()[-1]


@quantises
def test_packed_weights_that_are_not_built_again_are_refused_before_any_work(own, refused, cli):
    line = refused("decompose", "net.py:another", "--input-size", 32, "--rank", 0.25, "--out", "run")
    assert "6._packed_params._packed_params is quantised, which a run cannot hold" in line
    assert "builds another one than this" in line
    said = cli("decompose", "net.py:another", "--input-size", 32, "--rank", 0.25, "--out", "run").err
    assert "step 2" not in said


@pytest.mark.parametrize("network", [pytest.param("quantised", marks=quantises), "Apart"])
def test_without_gradients_the_metric_is_another(network, own, done, refused):
    command = ["decompose", f"net.py:{network}", "--input-size", 32, "--data", "digits", "--budget", "macs=0.7"]
    command += ["--calibration-images", 20, "--dry-run"]
    assert "the metric is data-covariance, as" in done(*command)
    assert "data-covariance" in refused(*command, "--metric", "kronecker")


def test_without_gradients_nothing_trains(own, done, cli):
    done("decompose", "net.py:Apart", "--input-size", 32, "--rank", 0.25, "--out", "run")
    result = cli("finetune", "run", "--trust-code", "--data", "digits")
    assert result.code == 2
    assert "computes its answers without gradients" in result.err.splitlines()[-1]
