"""Files that are no weights, or not those of the network: named as what they are."""

import gzip
import io
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cnncompress.errors import CompressError
from cnncompress.models import load_model
from cnncompress.models.weights import find_weights, read_weights
from cnncompress.names.models import check_weights
from tests.models.helpers import Network, Settings, one_line, optimizer


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


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda n: n, "holds a whole pickled network"),
        (lambda n: {"model": n, "epoch": 3, "rate": torch.tensor(0.1)}, "save(network.state_dict(), FILE)"),
        (lambda n: {"optimizer": optimizer(None), "net": nn.Sequential(n)}, "torch.nn.modules.container.Sequential"),
        (lambda n: Settings(), "holds an object of tests.models.helpers.Settings"),
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
