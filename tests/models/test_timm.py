"""Networks of timm by name."""

from __future__ import annotations

import importlib.util
import sys
import types

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from cnncompress.errors import CompressError, UsageError
from cnncompress.models import ModelSource, build_architecture, load_model, load_weights
from cnncompress.network.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from tests.models.helpers import one_line


class StubTimm(types.ModuleType):
    """As much of timm as is used, for machines without it."""

    def __init__(self) -> None:
        super().__init__("timm")
        self.data = types.SimpleNamespace(
            resolve_data_config=lambda _, model: {
                "input_size": (3, 176, 176),
                "crop_pct": 0.875,
                "interpolation": "bicubic",
                "mean": IMAGENET_MEAN,
                "std": IMAGENET_STD,
            }
        )

    def list_models(self) -> list[str]:
        return ["resnet10t"]

    def is_model(self, name: str) -> bool:
        return name == "resnet10t"

    def create_model(self, name: str, pretrained: bool, num_classes: int = 1000) -> nn.Module:
        if pretrained:
            raise LookupError("offline\nsecond line")
        return torchvision.models.resnet18(num_classes=num_classes)


@pytest.fixture(params=["stub", "installed"] if importlib.util.find_spec("timm") else ["stub"])
def timm(request, monkeypatch) -> None:
    if request.param == "stub":
        stub = StubTimm()
        monkeypatch.setitem(sys.modules, "timm", stub)
        monkeypatch.setitem(sys.modules, "timm.data", stub.data)


@pytest.mark.usefixtures("timm")
def test_timm_models(tmp_path):
    loaded = load_model("timm:resnet10t", "none", num_classes=4)
    assert loaded.source == ModelSource("timm", "resnet10t", {"num_classes": 4})
    again = build_architecture(loaded.source)
    assert all(p.is_meta for p in again.parameters())
    load_weights(again, loaded.model.state_dict(), "test")
    save_file(loaded.model.state_dict(), tmp_path / "w.safetensors")
    from_file = load_model("timm:resnet10t", str(tmp_path / "w.safetensors"))
    assert from_file.source == loaded.source
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(again(x), loaded.model(x))
        assert torch.equal(from_file.model(x), loaded.model(x))
    # 176 / 0.875 = 201.1
    assert loaded.preprocessing == Preprocessing((176, 176), 201, IMAGENET_MEAN, IMAGENET_STD, "bicubic")
    with pytest.raises(UsageError, match="did you mean 'resnet10t'"):
        load_model("timm:resnet10")


def test_timm_offline(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", StubTimm())
    with pytest.raises(CompressError, match=r"LookupError: offline.*--weights PATH") as error:
        load_model("timm:resnet10t")
    one_line(error)


def test_timm_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(CompressError, match=r"cnncompress\[timm\]") as error:
        load_model("timm:resnet10t")
    one_line(error)
