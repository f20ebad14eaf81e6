"""A run of a user's own code, opened without consent to that code or where it is gone."""

import json
import shutil
from pathlib import Path

import onnxruntime
import pytest
import torch

from cnncompress.files.tensorfile import load_tensors
from cnncompress.models import ModelSource, build_architecture
from cnncompress.network.compressed import with_provenance
from cnncompress.network.preprocessing import Preprocessing
from cnncompress.network.provenance import Provenance, attach
from cnncompress.reporting import Report, Row
from cnncompress.runs import load, save_run

CODE = """
from pathlib import Path
import torch
from torch import nn
Path(__file__).with_name("ran").touch()
def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))
"""

COSTS = ("params", "macs", "size_bytes", "other_macs")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A run with its program, in a folder that has the code too."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "net.py").write_text(CODE)
    source = ModelSource("factory", f"{folder / 'net.py'}:build")
    prepared = Preprocessing((32, 32), None, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    net = attach(build_architecture(source), Provenance(source, prepared))
    rows = [Row("net", "original", 2690, 30_000, 10_728), Row("net small", "decomposed", 2690, 30_000, 10_728)]
    save_run(folder / "run", with_provenance(net), metrics=Report(rows).to_json(), info={"name": "net"})
    (folder / "ran").unlink()
    return folder


@pytest.fixture
def run(given, cli):
    shutil.copytree(given / "run", "run")
    yield Path("run")
    (given / "ran").unlink(missing_ok=True)


def test_what_needs_no_layers_is_done_by_the_program(run, given, done):
    assert "359 images" in done("evaluate", run, "--data", "digits")
    assert "net small" in done("report", run)
    table = done("report", run, "--data", "digits", "--latency")
    assert "not at hand: its accuracy was not measured" in table
    assert "2,690" in done("profile", run)
    done("export", run, "--format", "pt2", "--output", "net.pt2")
    assert not (given / "ran").exists()


@pytest.mark.slow
def test_exports_of_a_program_agree(run, given, done):
    done("export", run, "--format", "onnx", "--output", "net.onnx")
    done("export", run, "--format", "pt2", "--output", "net.pt2")
    assert not (given / "ran").exists()
    session = onnxruntime.InferenceSession("net.onnx")
    x = torch.randn(3, 3, 32, 32)
    exported = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(exported), torch.export.load("net.pt2").module()(x), atol=1e-5)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["inspect", "run"], "cannot list the layers of run run"),
        (["profile", "run", "--layers"], "cannot time the layers of run run"),
        (["decompose", "run", "--out", "new"], "cannot decompose run run"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_needs_layers_is_refused_in_a_line(command, words, run, given, cli):
    result = cli(*command)
    assert result.code == 1
    assert words in result.err.splitlines()[-1]
    assert "give --trust-code" in result.err.splitlines()[-1]
    assert not (given / "ran").exists()
    assert not Path("new").exists()


@pytest.mark.few(1)
@pytest.mark.parametrize("out", [["--out", "new"], []], ids=["out", "there"])
def test_a_program_is_trained_and_so_is_its_network(out, run, given, cli):
    before = json.loads((run / "metrics.json").read_text())["rows"][-1]
    old = load(run)
    result = cli("finetune", run, "--data", "digits", "--epochs", 2, "--lr", 0.02, *out)
    assert result.code == 0, result.err
    assert result.err.count("the statistics of batch normalisation stay as they are, and dropout is off") == 1
    assert f"give --trust-code where {given / 'net.py'}:build is at hand" in result.err
    assert not (given / "ran").exists()
    target = Path(out[-1]) if out else run
    program, network = load(target), load(target, trust_code=True)
    assert (given / "ran").exists()
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(program(x), network(x), rtol=1e-5, atol=1e-6)
        assert not torch.allclose(program(x), old(x), rtol=1e-2), result.out + result.err
    assert all(torch.equal(program.state_dict()[name], tensor) for name, tensor in network.state_dict().items())
    for name in ("1.running_mean", "1.running_var"):
        assert torch.equal(network.state_dict()[name], old.state_dict()[name])
    row = json.loads((target / "metrics.json").read_text())["rows"][-1]
    assert row["kind"] == "finetuned"
    assert [row[key] for key in COSTS] == [before[key] for key in COSTS]


def test_a_training_of_a_program_resumes_as_one(run, given, cli, done):
    command = ["finetune", run, "--data", "digits", "--lr", 0.02]
    done(*command)
    weights = load_tensors(run / "model.safetensors")
    refused = cli(*command, "--resume", "--trust-code")
    assert refused.code == 2
    assert "what is trained was the stored program, now the network" in refused.err
    done(*command, "--resume")
    again = load_tensors(run / "model.safetensors")
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())


def test_which_layers_are_upper_a_program_does_not_tell(run, given, cli):
    result = cli("finetune", run, "--data", "digits", "--schedule", "upper")
    assert result.code == 2
    assert "--schedule upper needs layers" in result.err.splitlines()[-1]
    assert "give --schedule all, or --trust-code" in result.err.splitlines()[-1]
    assert not (run / "checkpoints").exists()


def test_with_consent_the_code_is_run(run, given, done):
    assert "3×3 3→4" in done("inspect", run, "--trust-code")
    assert (given / "ran").exists()


COMMANDS = [
    ["evaluate", "run", "--data", "digits"],
    ["report", "run", "--data", "digits"],
    ["profile", "run"],
    ["inspect", "run"],
    ["export", "run", "--format", "pt2"],
    ["decompose", "run", "--out", "new"],
    ["finetune", "run", "--data", "digits"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_every_command_names_the_code_that_it_does_not_run(command, run, given, cli):
    (run / "network.pt2").unlink()
    result = cli(*command)
    assert result.code == 1
    assert f"needs the code of the file {given / 'net.py'} (build)" in result.err.splitlines()[-1]
    assert "--trust-code" in result.err.splitlines()[-1]
    assert not (given / "ran").exists()
