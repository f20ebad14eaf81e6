"""Files of weights as people save them, and files that are none."""

import argparse
import gzip
import io
import pathlib
import pickle
import zipfile
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cnncompress.errors import CompressError
from cnncompress.models import load_model
from cnncompress.models.weights import find_weights, read_weights
from cnncompress.names.models import check_weights
from tests.models.helpers import one_line


class Settings:
    """A class of a user's own, which its file alone knows."""

    def __init__(self):
        self.rate = 0.1


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


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.norm(self.stem(x)).mean((2, 3)))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network()


@pytest.fixture
def state(network):
    return {name: torch.rand_like(t) if t.is_floating_point() else t for name, t in network.state_dict().items()}


def prefixed(state, prefix):
    return OrderedDict((prefix + name, t) for name, t in state.items())


def other(state):
    return {name: torch.zeros_like(t) for name, t in state.items()}


def optimizer(state):
    return {"state": {0: {"momentum_buffer": torch.rand(4, 3, 3, 3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


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


def archive(*names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(zipfile.ZipInfo(name), b"x")  # without the time of day
    return buffer.getvalue()


def onnx():
    return b"\x08\x08\x12\x07pytorch\x1a\x052.1.0" + bytes(100)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("w.pth", b"", "is empty"),
        ("w.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
        ("w.pth", b"\n<!DOCTYPE html><html></html>", "web page"),
        ("w.safetensors", b"<html>404</html>", "web page"),
        ("w.pth", b'<?xml version="1.0"?><Error>', "web page"),
        ("w.h5", b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5 file, as Keras and TensorFlow"),
        ("w.pth", b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5 file"),
        ("w.keras", archive("metadata.json", "config.json", "model.weights.h5"), "Keras model"),
        ("w.tflite", bytes(4) + b"TFL3" + bytes(50), "TensorFlow"),
        ("w.onnx", onnx(), "ONNX model"),
        ("w.pth", onnx(), "ONNX model"),
        ("w.bin", b"GGUF" + bytes(50), "GGUF"),
        ("w.pth", gzip.compress(b"weights", mtime=0), "compressed (gzip): unpack it"),
        ("w.pth.tar", bytes(257) + b"ustar" + bytes(300), "tar archive"),
        ("w.npz", archive("a.npy"), "NumPy arrays"),
        ("w.pth", archive("a/w.txt"), "ZIP archive, not weights"),
        ("w.pt", archive("net/data.pkl", "net/code/a.py", "net/constants.pkl"), "TorchScript archive"),
        ("w.pt2", archive("net/models/model.json", "net/version"), "torch.export"),
        ("w.json", b'{"weight_map": {}}', "the index of weights in several files: put the tensors of all of them"),
        ("w.safetensors.index.json", b'{"metadata": {}}', "the index of weights in several files"),
        ("w.json", b'{"epoch": 3}', "JSON text"),
        ("w.pth", b"hello", "no file of PyTorch weights"),
        ("w.safetensors", b"hello", "not a whole safetensors file"),
        ("w.pth", b"\x80\x02}q\x00X", "damaged or truncated"),
    ],
    ids=lambda value: value if isinstance(value, str) else "bytes",
)
def test_what_is_no_file_of_weights_is_named_as_what_it_is(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CompressError) as error:
        read_weights(tmp_path / name)
    assert words in one_line(error)
    assert name in one_line(error)


def test_half_a_file_is_named_as_that(state, tmp_path):
    for write, name in ((torch.save, "w.pth"), (save_file, "w.safetensors")):
        write(state, tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(CompressError, match=r"truncated|not a whole") as error:
            read_weights(tmp_path / name)
        one_line(error)


def test_folders_are_named_as_what_they_are(tmp_path):
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(CompressError, match="TensorFlow model"):
        read_weights(tmp_path)
    (tmp_path / "saved_model.pb").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CompressError, match=r"such as .*pytorch_model\.bin"):
        read_weights(tmp_path)


def yolo(network):
    kind = type("DetectionModel", (Network,), {"__module__": "ultralytics.nn.tasks"})
    model = kind()
    return {"epoch": -1, "model": model, "ema": None, "train_args": {"imgsz": 640}}


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda n: n, "holds a whole pickled network"),
        (lambda n: {"model": n, "epoch": 3, "rate": torch.tensor(0.1)}, "save(network.state_dict(), FILE)"),
        (lambda n: {"optimizer": optimizer(None), "net": nn.Sequential(n)}, "torch.nn.modules.container.Sequential"),
        (lambda n: Settings(), "holds an object of tests.models.test_checkpoints.Settings"),
        (lambda n: list(n.state_dict().values()), "holds list"),
        (lambda n: (n, 3), "holds a whole pickled network"),
        (lambda n: torch.zeros(3), "holds Tensor"),
        (lambda n: {"a": 1}, "not a state dict"),
        (lambda n: {"encoder.layer.0": torch.zeros(3)}, "another network: it has tensors such as 'encoder.layer.0'"),
    ],
)
def test_what_holds_no_weights_is_named_with_the_remedy(made, words, network, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(made(network), path)
    with pytest.raises(CompressError) as error:
        find_weights(read_weights(path), network, path)
    assert words in one_line(error)


def test_a_whole_network_in_the_old_format_is_named_as_that(network, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"net": network}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CompressError, match="holds a whole pickled network") as error:
        read_weights(path)
    one_line(error)


def test_a_yolo_file_is_named_as_that(network, tmp_path, monkeypatch):
    import sys
    from types import ModuleType

    module = ModuleType("ultralytics.nn.tasks")
    module.DetectionModel = type("DetectionModel", (Network,), {"__module__": "ultralytics.nn.tasks"})
    for name in ("ultralytics", "ultralytics.nn"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "ultralytics.nn.tasks", module)
    path = tmp_path / "yolov8n.pt"
    torch.save({"model": module.DetectionModel(), "ema": None, "train_args": {"imgsz": 640}}, path)
    with pytest.raises(CompressError, match="YOLO file: model is a whole detection network") as error:
        find_weights(read_weights(path), network, path)
    one_line(error)


def test_quantized_weights_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = load_model("digits_vgg").model.state_dict()
    state["features.0.weight"] = (state["features.0.weight"] * 10).to(torch.int8)
    torch.save(state, "weights.pth")
    with pytest.raises(CompressError, match=r"1 quantized \(features\.0\.weight is int8\)"):
        load_model("digits_vgg", "weights.pth")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.to(torch.complex64), r"1 complex \(features\.0\.weight is complex64\)"),
        (lambda t: t.to("meta"), r"1 without values \(on the meta device\) \(features\.0\.weight\)"),
    ],
)
def test_weights_that_are_no_numbers_are_refused_as_what_they_are(change, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = load_model("digits_vgg").model.state_dict()
    state["features.0.weight"] = change(state["features.0.weight"])
    torch.save(state, "weights.pth")
    with pytest.raises(CompressError, match=rf"weights\.pth do not fit the network: {words}$"):
        load_model("digits_vgg", "weights.pth")


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "pytorch_model-1-of-2.bin", "whole-of-it.pth"])
def test_one_of_several_files_of_weights_is_told_to_be_one(name, tmp_path):
    state = load_model("digits_vgg").model.state_dict()
    half = {key: state[key] for key in list(state)[:6]}
    write = save_file if name.endswith(".safetensors") else torch.save
    write(half, tmp_path / name)
    with pytest.raises(CompressError, match=r"do not fit the network: .* missing") as error:
        load_model("digits_vgg", str(tmp_path / name))
    assert ("one of several files: put the tensors of all of them" in str(error.value)) == ("2." in name)


def test_weights_elsewhere_are_to_be_fetched():
    with pytest.raises(CompressError, match=r"https://example.com/w\.pth; nothing is downloaded: fetch it"):
        check_weights("https://example.com/w.pth")


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
