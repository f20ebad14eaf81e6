"""The public names, and the whole job as functions."""

import ast
import copy
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest
import torch
from torch import nn

import cnncompress as cc
from cnncompress.chains.modules import FactoredLayer
from cnncompress.correction.reconstruct import reconstruct
from cnncompress.network.provenance import provenance
from tests.finetuning.toy import Toy, network


def net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)).eval()


# --- names ---


def test_the_public_names_are_listed_and_there():
    assert dir(cc) == sorted(cc.__all__)
    for name in cc.__all__:
        assert getattr(cc, name) is not None


def test_type_checkers_see_every_public_name():
    tree = ast.parse(Path(cc.__file__).read_text())
    block = next(n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    seen = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == set(cc._HOME) == set(cc.__all__) - {"__version__"}


def test_no_public_name_is_also_a_module():
    assert not {module.name for module in pkgutil.iter_modules(cc.__path__)} & set(cc.__all__)


def test_functions_stay_functions_whatever_was_imported_before():
    for module in pkgutil.walk_packages(cc.__path__, "cnncompress."):
        if module.name != "cnncompress.__main__":
            importlib.import_module(module.name)
    assert all(callable(getattr(cc, name)) for name in ("evaluate", "finetune", "report", "export", "plan", "profile"))


def test_public_functions_are_typed_and_described():
    for name, home in cc._HOME.items():
        found = getattr(importlib.import_module(f"cnncompress.{home}"), name)
        assert inspect.getdoc(found)
        if inspect.isfunction(found):
            signature = inspect.signature(found)
            assert signature.return_annotation is not inspect.Signature.empty, name
            assert all(p.annotation is not p.empty for p in signature.parameters.values()), name


# --- representations ---


def test_a_plan_fits_a_screen():
    layers = nn.Sequential(*[nn.Conv2d(8, 8, 3, padding=1) for _ in range(40)])
    planned = cc.plan(layers, torch.zeros(1, 8, 16, 16), rank=0.25)
    lines = repr(planned).splitlines()
    assert "40 layers replaced, 0 kept" in lines[0]
    assert len(lines) < 24
    assert max(map(len, lines)) <= 80
    assert repr(planned.layers["0"]) == "<3×3 8→8: spatial-svd 6, params 584 → 296, MACs 147.5K → 73.73K>"
    assert repr(cc.plan(layers, torch.zeros(1, 8, 16, 16), skip=["*"])).startswith("<Plan: 0 layers replaced, 40 kept")


def test_other_representations_hold_no_tensors():
    model = net()
    statistics = cc.collect_statistics(model, [torch.rand(4, 3, 8, 8)], progress=False)
    for value in (statistics, cc.profile(model, torch.rand(1, 3, 8, 8)), cc.load_model("digits_vgg")):
        text = repr(value)
        assert "tensor(" not in text
        assert len(text) < 800
    assert repr(statistics["0"]) == "<LayerStatistics of 4 images, 128 rows: mean, moment>"


# --- functions ---


def test_compress_meets_its_budget_and_leaves_the_network_alone():
    model, images = net(), torch.rand(24, 3, 16, 16)
    before = copy.deepcopy(model.state_dict())
    small = cc.compress(model, images, cc.Budget(macs=0.6))
    example = images[:1]
    assert cc.profile(small, example).macs <= 0.6 * cc.profile(model, example).macs
    assert any(isinstance(module, FactoredLayer) for module in small.network.modules())
    assert small.plan.achieved["macs"] <= 0.6
    assert small.plan == small.provenance.plan
    assert torch.equal(small(images), small.network(images))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    only = cc.compress(model, images, cc.Budget(macs=0.9), skip=["0"])
    assert torch.equal(only.network[0].weight, model[0].weight)


class Normalising(nn.Module):
    """Normalises its own input, in a tensor of its own or in that which it is given."""

    def __init__(self, in_place):
        super().__init__()
        self.net, self.in_place = net(), in_place

    def forward(self, x):
        return self.net(x.sub_(0.4).div_(0.3) if self.in_place else (x - 0.4) / 0.3)


def test_a_network_that_writes_into_its_input_is_compressed_like_one_that_does_not():
    images, labels = torch.rand(24, 3, 16, 16), torch.arange(24) % 3
    given = images.clone()
    small, expected = (
        cc.compress(Normalising(in_place), given, cc.Budget(macs=0.6), allow_slower=True) for in_place in (True, False)
    )
    assert torch.equal(given, images)
    assert small.plan.layers.keys() == expected.plan.layers.keys()
    for name, value in expected.network.state_dict().items():
        assert torch.equal(small.network.state_dict()[name], value), name
    results = [cc.evaluate(one, [(given, labels)] * 2) for one in (small, expected)]
    assert results[0] == results[1]
    trained = [
        reconstruct(Normalising(in_place), small.network, given, 4, progress=False)[0] for in_place in (True, False)
    ]
    assert torch.equal(given, images)
    assert torch.equal(trained[0](given.clone()), trained[1](given.clone()))


def test_a_network_that_calls_no_layer_is_refused():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x):
            return x.mean((2, 3))

    for how in ({"budget": cc.Budget(macs=0.5)}, {"rank": 0.5}):
        with pytest.raises(cc.CompressError, match=r"^the forward pass of Unused calls no convolution or linear layer"):
            cc.plan(Unused(), torch.rand(4, 3, 16, 16), **how)


def test_what_compress_gives_is_saved_and_measured_like_a_network(tmp_path):
    model, images = network(), Toy().images
    small = cc.compress(model, images, cc.Budget(macs=0.7))
    labels = torch.zeros(len(images)).long()
    measured = [cc.evaluate(one, [(images, labels)], progress=False).loss for one in (small, small.network)]
    assert measured[0] == measured[1]
    for one, name in ((small, "whole"), (small.network, "plain")):
        cc.save(one, tmp_path / name)
    found = [cc.load(tmp_path / name) for name in ("whole", "plain")]
    assert all(torch.equal(again(images), small(images)) for again in found)
    kept = copy.deepcopy(small.network)
    assert provenance(kept).plan == small.plan == provenance(found[0]).plan


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model": "resnet18"}, "model is a str"),
        ({"budget": 0.5}, r"budget is a float: give Budget\(macs=0.5\)"),
        ({"budget": {"macs": 0.5}}, "budget is a dict"),
        ({"images": torch.ones(0, 3, 8, 8)}, "no images"),
    ],
)
def test_compress_says_what_it_takes(changed, words):
    given = {"model": net(), "images": torch.ones(2, 3, 8, 8), "budget": cc.Budget(macs=0.5), **changed}
    with pytest.raises(cc.UsageError, match=words):
        cc.compress(**given)


def test_a_report_is_on_runs():
    with pytest.raises(cc.UsageError, match="not on a Sequential"):
        cc.report(net())


def test_finetune_trains_in_place_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model, train, val = network(), Toy(), Toy(seed=1)
    start = cc.evaluate(model, [(val.images, torch.tensor(val.labels))])
    settings = cc.FinetuneSettings(epochs=3, lr=0.05, batch_size=16)
    result = cc.finetune(model, train, val, settings, device="cpu")
    found = cc.evaluate(model, [(val.images, torch.tensor(val.labels))])
    assert result.start.top1 == pytest.approx(start.top1)
    assert found.top1 == pytest.approx(result.best.top1)
    assert found.top1 >= start.top1
    assert list(tmp_path.iterdir()) == []


def test_finetune_goes_on_from_a_folder_only():
    with pytest.raises(cc.UsageError, match="checkpoints=FOLDER"):
        cc.finetune(net(), Toy(), Toy(), resume=True)


def test_export_takes_a_network_or_a_run(tmp_path):
    model = cc.load_model("digits_vgg").model
    small = cc.decompose(model, cc.plan(model, torch.zeros(1, 3, 32, 32), rank=4), progress=False)
    cc.save(small, tmp_path / "run")
    for one, name in ((small, "one.pt2"), (tmp_path / "run", "two.pt2")):
        done = cc.export(one, tmp_path / name)
        assert done.path.is_file()
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(torch.export.load(tmp_path / "two.pt2").module()(x), small(x))


@pytest.mark.parametrize(
    ("path", "options", "words"),
    [("net.onyx", {}, "did you mean 'onnx'?"), ("net.pt2", {}, "give export(..., example=IMAGES)")],
)
def test_export_says_what_it_needs(path, options, words, tmp_path):
    with pytest.raises(cc.UsageError) as error:
        cc.export(net(), tmp_path / path, **options)
    assert words in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_report_gives_the_rows_of_a_run(tmp_path):
    with pytest.raises(cc.UsageError, match="at least one run"):
        cc.report()
    with pytest.raises(cc.CompressError, match="no run at"):
        cc.report(tmp_path / "none")
