"""Names of models, checked without torch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torchvision

from cnncompress.errors import CompressError
from cnncompress.models.builtin import BUILTIN
from cnncompress.names.models import BUILTIN_NAMES, _builders, check_name, unknown_model


def test_the_built_in_networks_are_known():
    assert set(BUILTIN_NAMES) == set(BUILTIN)


def test_every_network_of_torchvision_passes():
    for name in torchvision.models.list_models(module=torchvision.models):
        check_name(name)
    assert set(_builders("*.py")) == set(torchvision.models.list_models(module=torchvision.models))


@pytest.mark.parametrize("task", ["segmentation", "detection", "video", "optical_flow", "quantization"])
def test_networks_for_other_tasks_are_named_as_such(task):
    module = getattr(torchvision.models, task)
    for name in torchvision.models.list_models(module=module):
        assert f"{name} is one of torchvision's networks for {task.replace('_', ' ')};" in str(unknown_model(name))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet5", "did you mean 'resnet50'?"),
        ("digits_vg", "did you mean 'digits_vgg'?"),
        ("ResNet18", "did you mean 'resnet18'?"),
        ("fasterrcnn_resnet50_fpn", "networks for detection"),
        ("fcn_resnet50", "give torchvision.models.segmentation:fcn_resnet50 with --model-arg weights_backbone=null"),
        ("timm/resnet18", "did you mean 'timm:resnet18'?"),
        ("nets.py", "give nets.py:FUNCTION"),
        ("none.py:build", "no such file: none.py"),
        ("nets.ipynb:build", "nets.ipynb is no file of Python source"),
        ("no_such_package.nets:build", "no Python module 'no_such_package.nets'"),
        ("notes.txt", "notes.txt is a file, not a model"),
        ("weights/best.pth", "is a file of weights"),
        ("runs/none", "no run at runs/none"),
        ("./none", "no run at ./none"),
        ("folder", "folder is not a run: it has no run.json"),
    ],
)
def test_wrong_names(name, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").touch()
    Path("nets.ipynb").touch()
    Path("folder").mkdir()
    with pytest.raises(CompressError) as error:
        check_name(name)
    assert words in str(error.value)


@pytest.mark.parametrize(
    "name",
    [*BUILTIN_NAMES, "timm:resnet18", "nets.py:build", "~/nets.py:build", "nets:build", "resnet18", "torch.nn:Linear"],
)
def test_names_that_may_be_right_pass(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("nets.py").touch()
    Path("resnet18").mkdir()
    check_name(name)


def test_where_torchvision_cannot_be_seen_nothing_is_refused(monkeypatch):
    monkeypatch.setattr("cnncompress.names.models.find_spec", lambda name: None)
    check_name("any_network")


def test_checking_imports_no_torch():
    code = """
import sys
from cnncompress.names.models import check_name
check_name("resnet50")
assert not {"torch", "torchvision"} & set(sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
