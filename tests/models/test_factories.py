"""Networks made by functions of a file or a module."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cnncompress.errors import CompressError, RunError, UsageError
from cnncompress.models import ModelSource, build_architecture, load_model
from cnncompress.network.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from tests.models.helpers import one_line

FACTORY = """
import torch
from torch import nn

def make(width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.Flatten(), nn.LazyLinear(2) if width == 0 else nn.Linear(4, 2))

def broken():
    raise ValueError("no such width\\nsecond line")

def leaves():
    raise SystemExit(3)

def number():
    return 7

constant = 3
"""


@pytest.fixture
def factory(tmp_path: Path) -> Path:
    path = tmp_path / "nets.py"
    path.write_text(FACTORY)
    return path


def test_factory_from_a_file(factory, monkeypatch):
    monkeypatch.chdir(factory.parent)
    loaded = load_model("nets.py:make", input_size=16)
    assert loaded.source == ModelSource("factory", f"{factory}:make")
    assert loaded.preprocessing.size == (16, 16)
    assert loaded.preprocessing.resize is None
    assert loaded.preprocessing.mean == IMAGENET_MEAN
    assert loaded.preprocessing.std == IMAGENET_STD
    monkeypatch.chdir("/")
    source = ModelSource(**json.loads(json.dumps(dataclasses.asdict(loaded.source))))
    assert str(build_architecture(source)) == str(loaded.model)


def test_factory_with_weights(factory, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    loaded = load_model(f"{factory}:make", str(tmp_path / "w.safetensors"))
    assert torch.equal(loaded.model[2].weight, model[2].weight)


def test_factory_in_a_module_of_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "my_nets_package.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    assert load_model("my_nets_package:make").source.name == "my_nets_package:make"


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("broken", "raised ValueError: no such width"),
        ("leaves", "raised SystemExit: 3"),
        ("number", "returned int"),
        ("constant", "is of type int, not a function or class"),
        ("mak", "did you mean 'make'"),
    ],
)
def test_factories_that_fail(factory, function, reason):
    with pytest.raises(CompressError) as error:
        load_model(f"{factory}:{function}")
    assert reason in one_line(error)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing_file.py:make", "no such file"),
        ("~nobody_of_this_name/nets.py:make", "no such file"),
        ("missing_module.sub:make", "no Python module 'missing_module.sub'"),
        ("nets.py", "nets.py:FUNCTION"),
        ("vgg16:", "unknown model"),
        ("", "unknown model"),
    ],
)
def test_factories_that_do_not_exist(name, reason):
    with pytest.raises(UsageError) as error:
        load_model(name)
    assert reason in one_line(error)


def test_module_that_cannot_be_imported(tmp_path):
    (tmp_path / "bad.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(CompressError, match="raised ModuleNotFoundError") as error:
        load_model(f"{tmp_path}/bad.py:make")
    one_line(error)


def test_run_whose_factory_file_is_gone(tmp_path):
    with pytest.raises(RunError, match=r"gone\.py") as error:
        build_architecture(ModelSource("factory", f"{tmp_path}/gone.py:make"))
    one_line(error)


@pytest.mark.parametrize(
    "source",
    [
        ModelSource("torchvision", "resnet17"),
        ModelSource("torchvision", "resnet18", {"depth": 3}),
        ModelSource("builtin", "digits_net"),
    ],
)
def test_sources_that_cannot_be_built(source):
    with pytest.raises(RunError, match=source.name) as error:
        build_architecture(source)
    one_line(error)


def test_classes_of_a_factory(factory):
    with pytest.raises(UsageError, match=r"has no argument 'num_classes' \(it takes width\)") as error:
        load_model(f"{factory}:make", num_classes=3)
    one_line(error)


# --- neighbours, arguments and other things to call ---

NETWORK = """
from torch import nn
{imports}
def make():
    return nn.Sequential(nn.Conv2d(3, WIDTH, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 2))
"""


def project(root: Path, width: int) -> Path:
    """A package `parts` with a constant in it, beside it `net.py`, and within it `script.py` and `member.py`."""
    (root / "parts").mkdir(parents=True)
    (root / "parts/__init__.py").write_text("")
    (root / "parts/widths.py").write_text(f"WIDTH = {width}\n")
    (root / "net.py").write_text(NETWORK.format(imports="from parts.widths import WIDTH"))
    (root / "parts/script.py").write_text(NETWORK.format(imports="from widths import WIDTH"))
    (root / "parts/member.py").write_text(NETWORK.format(imports="from .widths import WIDTH"))
    (root / "parts/deep").mkdir()
    (root / "parts/deep/__init__.py").write_text("")
    (root / "parts/deep/member.py").write_text(NETWORK.format(imports="from ..widths import WIDTH"))
    return root


FILES = ["net.py", "parts/script.py", "parts/member.py", "parts/deep/member.py"]


@pytest.mark.parametrize("file", FILES)
def test_a_file_finds_its_neighbours_from_any_folder(file, tmp_path, monkeypatch):
    root = project(tmp_path / "project", 6)
    monkeypatch.chdir("/")
    assert load_model(f"{root}/{file}:make").model[0].out_channels == 6


@pytest.mark.parametrize("file", FILES)
def test_two_files_have_neighbours_of_the_same_name(file, tmp_path):
    one, two = project(tmp_path / "one", 4), project(tmp_path / "two", 7)
    for root, width in ((one, 4), (two, 7), (one, 4), (two, 7)):
        assert load_model(f"{root}/{file}:make").model[0].out_channels == width


def test_a_relative_import_needs_no_package(tmp_path):
    (tmp_path / "widths.py").write_text("WIDTH = 5\n")
    (tmp_path / "net.py").write_text(NETWORK.format(imports="from .widths import WIDTH"))
    assert load_model(f"{tmp_path}/net.py:make").model[0].out_channels == 5


def test_a_neighbour_gives_way_to_no_installed_package_and_to_no_module_of_the_caller(tmp_path, monkeypatch):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError\n")
    (tmp_path / "mine.py").write_text("WIDTH = 5\n")
    (tmp_path / "net.py").write_text(NETWORK.format(imports="from mine import WIDTH"))
    theirs = ModuleType("mine")
    theirs.__file__ = "/elsewhere/mine.py"
    monkeypatch.setitem(sys.modules, "mine", theirs)
    installed, arguments = sys.modules["torchvision"], list(sys.argv)
    assert load_model(f"{tmp_path}/net.py:make").model[0].out_channels == 5
    assert sys.modules["mine"] is theirs
    assert sys.modules["torchvision"] is installed
    assert sys.argv == arguments


def test_a_file_that_reads_the_command_line_sees_none(tmp_path):
    imports = "import sys\nassert sys.argv == [__file__]\nWIDTH = 4"
    (tmp_path / "net.py").write_text(NETWORK.format(imports=imports))
    load_model(f"{tmp_path}/net.py:make")


WITH_ARGUMENTS = """
from torch import nn

class Net(nn.Module):
    def __init__(self, width, depth=1, *, names=("a",), bias=True):
        super().__init__()
        layers = [nn.Conv2d(3 if i == 0 else width, width, 3, bias=bias) for i in range(depth)]
        self.layers, self.names = nn.Sequential(*layers), names

    def forward(self, x):
        return self.layers(x).mean((2, 3))

    @classmethod
    def wide(cls):
        return cls(9)

network = Net(3)

def anything(**kwargs):
    return Net(**kwargs)

def unnamed(width, /):
    return Net(width)
"""


@pytest.fixture
def nets(tmp_path):
    (tmp_path / "nets.py").write_text(WITH_ARGUMENTS)
    return f"{tmp_path}/nets.py"


def test_arguments_reach_the_function_and_stay_with_the_source(nets):
    given = {"width": 5, "depth": 2, "names": ["x", "y"], "bias": False}
    loaded = load_model(f"{nets}:Net", arguments=given)
    assert [m.out_channels for m in loaded.model.layers] == [5, 5]
    assert loaded.model.names == ["x", "y"]
    assert loaded.source == ModelSource("factory", f"{nets}:Net", given)
    source = ModelSource(**json.loads(json.dumps(dataclasses.asdict(loaded.source))))
    assert str(build_architecture(source)) == str(loaded.model)
    assert load_model(f"{nets}:anything", arguments=given).model.layers[0].bias is None


def test_a_network_that_holds_what_cannot_be_copied_will_do(tmp_path):
    (tmp_path / "nets.py").write_text(WITH_ARGUMENTS + "import threading\nnetwork.lock = threading.Lock()\n")
    loaded = load_model(f"{tmp_path}/nets.py:network")
    assert loaded.model.layers[0].out_channels == 3
    assert loaded.model is not load_model(f"{tmp_path}/nets.py:network").model


def test_a_neighbour_may_be_called_as_torch_is(nets, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('not this one')\n")
    assert load_model(f"{nets}:network").model.layers[0].out_channels == 3


def test_a_class_a_method_and_a_network_will_do(nets):
    assert load_model(f"{nets}:Net", arguments={"width": 2}).model.layers[0].out_channels == 2
    assert load_model(f"{nets}:Net.wide").model.layers[0].out_channels == 9
    assert load_model(f"{nets}:network").model.layers[0].out_channels == 3


@pytest.mark.parametrize(
    ("function", "arguments", "reason"),
    [
        ("Net", {}, "needs the argument width: give --model-arg width=VALUE"),
        ("Net", {"widht": 3}, "no argument 'widht'; did you mean 'width'? (it takes width, depth, names, bias)"),
        ("network", {"width": 3}, "takes no arguments"),
        ("unnamed", {}, "wrap it in a function"),
        ("Net.narrow", {}, "has no function 'Net.narrow'"),
    ],
)
def test_arguments_that_do_not_fit(nets, function, arguments, reason):
    with pytest.raises(UsageError) as error:
        load_model(f"{nets}:{function}", arguments=arguments)
    assert reason in one_line(error)


def test_arguments_of_networks_by_name():
    loaded = load_model("timm:resnet18", "none", arguments={"in_chans": 1, "num_classes": 2})
    assert loaded.model.conv1.in_channels == 1
    assert load_model("squeezenet1_1", "none", arguments={"dropout": 0.1}).model.classifier[0].p == 0.1
    for name in ("resnet18", "timm:resnet18"):
        with pytest.raises(UsageError, match="pretrained_cfg"):
            load_model(name, "none", arguments={"pretrained_cfg": {"file": "x"}})


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("deeplabv3_resnet50", "segmentation"),
        ("fasterrcnn_resnet50_fpn", "detection"),
        ("r3d_18", "video"),
        ("raft_small", "optical flow"),
        ("quantized_resnet18", "quantization"),
        ("weights/best.pth", "is a file of weights"),
        ("model.safetensors", "is a file of weights"),
    ],
)
def test_what_is_no_classification_network_is_named_as_what_it_is(name, what):
    with pytest.raises(UsageError) as error:
        load_model(name)
    assert what in one_line(error)
    assert "did you mean" not in one_line(error)


def test_a_function_that_leaves_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "nets.py").write_text(
        "import os\nfrom torch import nn\n\ndef make():\n    os.chdir('elsewhere')\n    return nn.Conv2d(3, 4, 3)\n"
    )
    load_model("nets.py:make")
    assert Path.cwd() == tmp_path


def test_weights_made_in_inference_mode_take_part_in_gradients(tmp_path):
    path = tmp_path / "nets.py"
    path.write_text(
        "import torch\nfrom torch import nn\n\ndef make():\n    with torch.inference_mode():\n"
        "        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))\n"
    )
    model = load_model(f"{path}:make").model
    assert not any(value.is_inference() for value in model.state_dict().values())
    model(torch.ones(2, 3, 4, 4)).sum().backward()
    assert model[0].weight.grad is not None


def test_a_method_without_its_object_is_named(tmp_path):
    path = tmp_path / "nets.py"
    path.write_text("class Zoo:\n    def make(self):\n        return None\n")
    with pytest.raises(UsageError, match="is a method"):
        load_model(f"{path}:Zoo.make")
