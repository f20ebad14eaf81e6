"""Files of weights as people save them."""

import argparse
import pathlib
import pickle
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cnncompress.errors import CompressError
from cnncompress.models import load_model
from cnncompress.models.weights import find_weights, read_weights
from tests.models.helpers import Settings, one_line, optimizer


class Bag(dict):
    """A mapping of a user's own."""


class Row(list):
    """A sequence of a user's own."""


class Trap:
    """Runs code where it is unpickled."""

    def __reduce__(self):
        return open, ("trapped", "w")


class Call:
    """Looks up code where it is unpickled, and runs it."""

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("trapped"),)


def prefixed(state, prefix):
    return OrderedDict((prefix + name, t) for name, t in state.items())


def other(state):
    return {name: torch.zeros_like(t) for name, t in state.items()}


WRAPPED = {
    "plain": lambda s: s,
    "args": lambda s: {"model": s, "optimizer": optimizer(s), "epoch": 3, "args": argparse.Namespace(lr=0.1)},
    "timm": lambda s: {"state_dict": other(s), "state_dict_ema": s, "arch": "x", "args": argparse.Namespace(a=[1])},
    "model_state": lambda s: {"model_state": s, "best": np.float64(91.5), "when": np.int64(3)},
    "net": lambda s: {"net": s, "acc": 0.9, "path": pathlib.PurePosixPath("runs/1")},
    "paths": lambda s: {"net": s, "path": pathlib.Path("runs")},
    "ema": lambda s: {"ema": {"decay": 0.99, "shadow": s}, "model": other(s)},
    "model_ema": lambda s: {"model": other(s), "model_ema": prefixed(s, "module.")},
    "data parallel": lambda s: {"state_dict": prefixed(s, "module.")},
    "compiled": lambda s: prefixed(s, "_orig_mod."),
    "compiled and parallel": lambda s: prefixed(s, "module._orig_mod."),
    "compiled within": lambda s: {name.replace("stem.", "stem._orig_mod."): t for name, t in s.items()},
    "parallel within": lambda s: {name.replace("stem.", "stem.module."): t for name, t in s.items()},
    "lightning": lambda s: {
        "state_dict": {**prefixed(s, "model."), "criterion.weight": torch.ones(2)},
        "hyper_parameters": Bag(lr=0.1, layers=Row([1, 2])),
        "optimizer_states": [optimizer(s)],
        "pytorch-lightning_version": "2.1.0",
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.9)}},
    },
    "a name of its own": lambda s: {"weights": {"classifier": prefixed(s, "backbone.body.")}},
    "parts": lambda s: {
        "stem": {k: s[f"stem.{k}"] for k in ("weight", "bias")},
        "norm": {k.removeprefix("norm."): t for k, t in s.items() if k.startswith("norm.")},
        "head": {k: s[f"head.{k}"] for k in ("weight", "bias")},
    },
    "counted": lambda s: {**s, "total_ops": torch.zeros(1), "stem.total_params": torch.zeros(1)},
    "average": lambda s: {"n_averaged": torch.tensor(3), **prefixed(s, "module.")},
    "no batch counter": lambda s: {name: t for name, t in s.items() if not name.endswith("batches_tracked")},
    "numpy": lambda s: {name: t.numpy() for name, t in s.items()},
    "parameters": lambda s: {k: nn.Parameter(t) if t.is_floating_point() else t for k, t in s.items()},
    "objects": lambda s: {"model": s, "config": Settings(), "kind": Settings, "enum": {Settings(): 1}, "rest": {1, 2}},
    "bytes": lambda s: {name.encode(): t for name, t in s.items()},
    "bytes within": lambda s: {b"state_dict": {f"module.{name}".encode(): t for name, t in s.items()}},
    "pairs": lambda s: list(s.items()),
    "pairs within": lambda s: {"epoch": 3, "weights": tuple(s.items())},
    "with its epoch": lambda s: (s, 3),
    "with its optimizer": lambda s: [optimizer(s), {"model": s}],
    "mappings": lambda s: {"model": s, "log": defaultdict(list, a=[1]), "bag": Bag(a=1), "row": Row([1])},
}


@pytest.mark.parametrize("kind", WRAPPED)
@pytest.mark.parametrize("old", [False, True])
def test_weights_are_found_by_what_fits(kind, old, network, state, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(WRAPPED[kind](state), path, _use_new_zipfile_serialization=not old)
    found = find_weights(read_weights(path), network, path).state
    for name, tensor in state.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(found[name], tensor), name


def test_what_was_chosen_is_said(network, state, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(WRAPPED["timm"](prefixed(state, "module.")), path)
    told = find_weights(read_weights(path), network, path).told
    assert told == "its state_dict_ema, without the prefix module., state_dict would fit as well"
    torch.save(WRAPPED["lightning"](state), path)
    told = find_weights(read_weights(path), network, path).told
    assert told == "its state_dict, without the prefix model., 1 tensors of other parts left out"
    torch.save(state, path)
    assert find_weights(read_weights(path), network, path).told == ""


def test_a_wrapped_network_takes_plain_weights(network, state, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": state}, path)
    found = find_weights(read_weights(path), nn.Sequential(OrderedDict(module=network)), path).state
    assert found.keys() == prefixed(state, "module.").keys()


def test_a_file_is_known_by_its_content(network, state, tmp_path):
    save_file(state, tmp_path / "weights.pth")
    torch.save(state, tmp_path / "weights.safetensors")
    for path in tmp_path.iterdir():
        assert torch.equal(find_weights(read_weights(path), network, path).state["stem.weight"], state["stem.weight"])


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("trap", [Trap, Call])
def test_nothing_in_a_file_is_run(trap, old, state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = pathlib.Path("weights.pth")
    torch.save({"model": state, "trap": trap()}, path, _use_new_zipfile_serialization=not old)
    if trap is Trap:
        assert torch.equal(read_weights(path)["model"]["stem.weight"], state["stem.weight"])
    else:
        with pytest.raises(CompressError, match=r"calls what getattr gives.*it was not opened"):
            read_weights(path)
    assert not pathlib.Path("trapped").exists()


def test_a_command_in_a_file_is_named_and_the_file_not_opened(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.")
    with pytest.raises(CompressError, match=r"posix\.system.*it was not opened") as error:
        read_weights(path)
    one_line(error)


def test_channels_and_classes_follow_the_file(tmp_path):
    import timm

    torch.manual_seed(0)
    state = timm.create_model("resnet18", in_chans=1, num_classes=7).state_dict()
    torch.save({"state_dict": state, "protocol": pickle.HIGHEST_PROTOCOL}, tmp_path / "w.pth")
    loaded = load_model("timm:resnet18", str(tmp_path / "w.pth"), input_size=32)
    assert loaded.source.kwargs == {"num_classes": 7, "in_chans": 1}
    assert loaded.preprocessing.channels == 1
    assert torch.equal(loaded.model.conv1.weight, state["conv1.weight"])


def test_scalars_of_numpy_and_sparse_tensors(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    values = {name: value.numpy() for name, value in model.state_dict().items()}
    values["0.bias"] = torch.arange(4.0).to_sparse()
    torch.save(values, tmp_path / "arrays.pth")
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))\n"
    )
    loaded = load_model(f"{tmp_path}/nets.py:make", weights=str(tmp_path / "arrays.pth")).model
    assert torch.equal(loaded[0].weight, model[0].weight)
    assert torch.equal(loaded[0].bias, torch.arange(4.0))
