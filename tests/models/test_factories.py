"""Networks made by functions of a file or a module."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cnncompress.errors import CompressError, RunError, UsageError
from cnncompress.models import ModelSource, build_architecture, load_model
from cnncompress.spec import IMAGENET_MEAN, IMAGENET_STD
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
