"""Saving networks that nobody loaded by name."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import cnncompress as cc
from cnncompress.chains.modules import FactoredLayer
from cnncompress.models.classes import class_source
from cnncompress.network.provenance import provenance

pytestmark = pytest.mark.filterwarnings("ignore:.* exported program")


class Net(nn.Module):
    """Can be built by its name."""

    def __init__(self, classes=3):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        return self.head(self.two(self.one(x).relu()).relu().mean((2, 3)))


class Sized(Net):
    """Needs an argument."""

    def __init__(self, classes):
        super().__init__(classes)


def small_of(model, size=(3, 8, 8)):
    plan = cc.plan(model.eval(), torch.zeros(1, *size), layers=["two"], rank=2)
    return cc.decompose(model, plan, progress=False)


def the_same(one, other, size=(3, 8, 8)):
    image = torch.rand(2, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return torch.allclose(one(image), other(image), rtol=1e-5, atol=1e-6)


def test_a_class_that_can_be_built_by_its_name_is_kept_by_it(tmp_path):
    small = small_of(Net())
    cc.save(small, tmp_path / "run")
    again = cc.load(tmp_path / "run", trust_code=True)
    assert isinstance(again, Net)
    assert any(isinstance(module, FactoredLayer) for module in again.modules())
    assert the_same(small, again)
    assert provenance(again).source.name == f"{__name__}:Net"
    assert the_same(small, cc.load(tmp_path / "run"))  # as the program that is stored beside it


@pytest.mark.parametrize(
    "model", [Sized(5), Net(7), nn.Sequential(Net(), nn.ReLU())], ids=["argument", "other", "parts"]
)
def test_any_other_network_is_kept_as_a_program(model, tmp_path):
    name = "two" if hasattr(model, "two") else "0.two"
    plan = cc.plan(model.eval(), torch.zeros(1, 3, 10, 8), layers=[name], rank=2)
    small = cc.decompose(model, plan, progress=False)
    cc.save(small, tmp_path / "run")
    again = cc.load(tmp_path / "run")
    assert the_same(small, again)
    assert provenance(again).preprocessing.size == (10, 8)
    assert provenance(again).source.kind == "program"


def test_a_class_in_a_function_is_kept_as_a_program(tmp_path):
    class Hidden(Net):
        pass

    small = small_of(Hidden())
    cc.save(small, tmp_path / "run")
    assert the_same(small, cc.load(tmp_path / "run"))


def test_a_source_that_is_given_counts(tmp_path):
    small = small_of(Net())
    cc.save(small, tmp_path / "run", source=f"{__name__}:Net")
    assert the_same(small, cc.load(tmp_path / "run", trust_code=True))


@pytest.mark.parametrize(
    ("model", "said"), [(Net(), False), (Sized(5), True), (nn.Sequential(nn.Conv2d(3, 8, 3)), True)], ids=str
)
def test_what_only_a_program_can_hold_is_said_when_it_is_saved(model, said, tmp_path):
    """Not before, as a network need not be saved, and not again for the run itself."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plan = cc.plan(model.eval(), torch.zeros(1, 3, 8, 8), rank=2)
        small = cc.decompose(model, plan, progress=False)
    assert not [w for w in caught if "exported program" in str(w.message)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cc.save(small, tmp_path / "run")
        if said:
            cc.save(cc.load(tmp_path / "run"), tmp_path / "again")
    words = [str(w.message) for w in caught if "exported program" in str(w.message)]
    assert len(words) == said
    assert all("source='path/file.py:factory'" in text for text in words)


def test_a_network_loaded_by_name_needs_no_warning(tmp_path):
    model = cc.load_model("digits_vgg").model
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        cc.save(cc.decompose(model, cc.plan(model, torch.zeros(1, 3, 32, 32), rank=2)), tmp_path / "run")


def test_without_a_name_and_an_input_nothing_is_written(tmp_path):
    with pytest.raises(cc.UsageError, match="nothing says what its input is"):
        cc.save(Sized(5), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_the_class_of_a_script_is_found_in_its_file(tmp_path, monkeypatch):
    main = type(torch)("__main__")
    main.__file__ = str(tmp_path / "script.py")
    own = type("Own", (Net,), {"__module__": "__main__", "__qualname__": "Own"})
    main.Own = own
    monkeypatch.setitem(__import__("sys").modules, "__main__", main)
    assert class_source(own()).name == f"{tmp_path / 'script.py'}:Own"
    del main.__file__
    assert class_source(own()) is None
