"""Networks that do not exist, do not build, do not run, or have weights that do not fit."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cnncompress.models import load_model

FACTORY = """
import torch
from torch import nn

def raises():
    raise ValueError("no such width\\nsecond line")

def exits():
    raise SystemExit(3)

def nothing():
    return None

class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x):
        raise KeyError("gone")

def no_layers():
    return nn.Flatten()

def no_values():
    with torch.device("meta"):
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten())
"""


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("", 2, "''"),
        ("vgg61", 2, "unknown model 'vgg61'; did you mean 'vgg"),
        ("digit_vgg", 2, "did you mean 'digits_vgg'?"),
        ("runs/none", 1, "no run at runs/none"),
        ("nets.py", 2, "give nets.py:FUNCTION"),
        ("none.py:build", 2, "no such file"),
        ("broken.py:build", 1, "SyntaxError"),
        ("no.such.module:build", 2, "no Python module 'no.such.module'"),
        ("nets.py:raise", 2, "has no function 'raise'; did you mean 'raises'?"),
        ("nets.py:raises", 1, "raised ValueError: no such width"),
        ("nets.py:exits", 1, "raised SystemExit: 3"),
        ("nets.py:nothing", 1, "returned NoneType"),
        ("nets.py:Failing", 1, "'gone'"),
        ("nets.py:no_layers", 1, "calls no convolution or linear layer"),
        ("nets.py:no_values", 1, "meta device"),
    ],
)
def test_wrong_model(name, code, words, refused):
    Path("nets.py").write_text(FACTORY)
    Path("broken.py").write_text("def build(:\n")
    assert words in refused("decompose", name, "--out", "out", "--input-size", "8", code=code)


def test_a_folder_with_the_name_of_a_network_is_no_run(done):
    Path("digits_vgg").mkdir()
    assert "99.44" in done("evaluate", "digits_vgg", "--data", "digits")


@pytest.mark.parametrize("command", ["inspect", "profile"])
def test_wrong_model_elsewhere(command, refused):
    Path("nets.py").write_text(FACTORY)
    assert "unknown model 'vgg61'" in refused(command, "vgg61", code=2)
    assert "'gone'" in refused(command, "nets.py:Failing", "--input-size", "8")


@pytest.fixture
def weights(cli):
    """Weights files of digits_vgg, whole and not."""
    state = load_model("digits_vgg").model.state_dict()
    first = "features.0.weight"
    save_file(state, "good.safetensors")
    torch.save(state, "good.pth")
    for name in ("good.safetensors", "good.pth"):
        Path(name.replace("good", "short")).write_bytes(Path(name).read_bytes()[:5000])
    save_file({**state, first: torch.zeros(1)}, "shape.safetensors")
    save_file({**state, first: torch.full_like(state[first], float("nan"))}, "nan.safetensors")
    save_file({name: value for name, value in state.items() if name != first}, "missing.safetensors")
    Path("code.pth").write_bytes(pickle.dumps({"a": print}))
    torch.save([1, 2, 3], "list.pth")
    Path("text.pth").write_text("hello")
    Path("empty.pth").touch()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.pth", "no such weights file: none.pth"),
        (".", "is a directory"),
        ("short.safetensors", "not a whole safetensors file"),
        ("short.pth", "is damaged or truncated"),
        ("code.pth", "is a pickle that torch.save did not write"),
        ("text.pth", "is no file of PyTorch weights"),
        ("empty.pth", "is empty"),
        ("list.pth", "holds list, not a state dict"),
        ("shape.safetensors", "features.0.weight is 1, not 16×3×3×3"),
        ("missing.safetensors", "1 missing (features.0.weight)"),
        ("nan.safetensors", "holds NaN or infinite values"),
    ],
)
def test_wrong_weights(name, words, weights, refused):
    assert words in refused("decompose", "digits_vgg", "--weights", name, "--out", "out")
    assert words in refused("inspect", "digits_vgg", "--weights", name)


def test_unknown_weights(refused):
    assert "give DEFAULT, none or a file" in refused(
        "decompose", "digits_vgg", "--weights", "V1", "--out", "out", code=2
    )
    message = refused("decompose", "alexnet", "--weights", "IMAGENET1K_V2", "--out", "out", code=2)
    assert "did you mean 'IMAGENET1K_V1'?" in message


def test_weights_of_another_network(weights, refused):
    assert "do not fit the network" in refused("decompose", "squeezenet1_1", "--weights", "good.pth", "--out", "out")


@pytest.mark.parametrize("name", ["good.safetensors", "good.pth"])
def test_good_weights_are_the_networks(name, weights, done):
    args = ["evaluate", "digits_vgg", "--data", "digits"]
    assert done(*args, "--weights", name) == done(*args)


def test_arguments_of_a_network_stay_with_its_run(done, cli):
    Path("nets.py").write_text(
        "from torch import nn\n"
        "def build(width, classes=2):\n"
        "    return nn.Sequential(nn.Conv2d(3, width, 3), nn.Flatten(1), nn.Linear(width * 36, classes))\n"
    )
    small = ["--input-size", "8"]
    assert "give --model-arg width=VALUE" in cli("inspect", "nets.py:build", *small).err
    assert "3→16" in done("inspect", "nets.py:build", *small, "--model-arg", "width=16")
    arguments = ["--model-arg", "width=16", "--model-arg", "classes=4"]
    done("decompose", "nets.py:build", *small, *arguments, "--rank", "2", "--out", "run")
    assert "2→4" in done("inspect", "run", "--trust-code")  # the last stage of the head
    refusal = cli("inspect", "run", "--trust-code", "--model-arg", "width=3")
    assert refusal.code == 2
    assert "leave out --model-arg" in refusal.err


GREY = """
from torch import nn
def build(channels=1):
    return nn.Sequential(nn.Conv2d(channels, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(16, 10))
"""


@pytest.mark.slow
def test_a_network_for_greyscale_images(done, refused):
    Path("nets.py").write_text(GREY)
    small = ["nets.py:build", "--input-size", "12", "--data", "digits", "--mean", "0.5", "--std", "0.25"]
    assert "on 359 images" in done("evaluate", *small)
    done("decompose", *small, "--budget", "macs=0.5", "--calibration-images", "40", "--out", "run")
    preprocessing = json.loads(Path("run/run.json").read_text())["preprocessing"]
    assert (preprocessing["mean"], preprocessing["std"]) == ([0.5], [0.25])
    assert "on 359 images" in done("evaluate", "run", "--trust-code", "--data", "digits")
    for option in ("--mean", "--std"):
        line = refused("evaluate", *small[:5], option, "0.1,0.2,0.3", code=2)
        assert f"{option} has 3 numbers for a network of 1 channel" in line
    five = refused("evaluate", *small[:5], "--model-arg", "channels=5")
    assert "image files have 1, 3 or 4 channels, and the network takes 5" in five


def test_an_input_size_that_does_not_fit_is_refused_with_the_option(refused):
    Path("nets.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 14 * 14, 10))\n"
    )
    for command in (["inspect"], ["profile"], ["decompose"], ["evaluate", "--data", "digits"]):
        assert "--input-size" in refused(*command, "nets.py:build")
        assert "--input-size" in refused(*command, "nets.py:build", "--input-size", "12")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            [],
            "grey images of 224×224 (assumed: give --input-size), mean 0.449 (assumed: give --mean), "
            "std 0.226 (assumed: give --std)",
        ),
        (
            ["--input-size", "12x16", "--mean", "0.5", "--std", "0.25"],
            "grey images of 12×16, mean 0.5, std 0.25",
        ),
    ],
)
def test_what_is_assumed_of_a_network_is_said(options, line, cli, done):
    Path("nets.py").write_text(GREY)
    told = cli("inspect", "nets.py:build", *options).err
    assert f"network build: weights: as {Path('nets.py').resolve()}:build returns them; {line}\n" in told
    report = done("decompose", "nets.py:build", *options, "--rank", "2", "--out", "run")
    assert ("assumed of network build" in report) == (not options)
    assert "assumed" not in cli("inspect", "digits_vgg").err
