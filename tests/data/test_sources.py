"""Where images come from: folders, torchvision sets, their labels and their faults."""

from __future__ import annotations

import gzip
import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cnncompress.data import Data, Images, load_data, sources
from cnncompress.data.builtin import BUILTIN
from cnncompress.data.sources import TORCHVISION
from cnncompress.errors import DataError, UsageError
from cnncompress.names.data import BUILTIN_SETS, TORCHVISION_SETS
from tests.data.helpers import PLAIN, labels, refused, tree, write

# --- folders ---


def test_flat_folder_is_for_evaluation(tmp_path):
    data = load_data(str(tree(tmp_path, {"b": 2, "a": 1})), PLAIN, 2)
    assert data.train is None
    assert data.classes == 2
    assert labels(data.val) == [0, 1, 1]
    image, label = data.val[2]
    assert image.shape == (3, 8, 8)
    assert label == 1
    assert torch.allclose(image, torch.full((3, 8, 8), 1 / 255))


def test_train_and_val(tmp_path):
    tree(tmp_path / "train", {"a": 3, "b": 4})
    tree(tmp_path / "val", {"a": 1, "b": 2})
    data = load_data(str(tmp_path), PLAIN, 2)
    assert data.train is not None
    assert (len(data.train), len(data.val)) == (7, 3)


@pytest.mark.parametrize("where", ["val", "."])
def test_class_index_maps_folders_to_classes(tmp_path, where):
    tree(tmp_path / "val", {"dog": 1, "cat": 2})
    (tmp_path / where / "class_index.json").write_text(json.dumps({"cat": 7, "dog": 3, "cow": 900}))
    data = load_data(str(tmp_path), PLAIN, 10)
    assert labels(data.val) == [7, 7, 3]
    assert data.classes == 10


def test_class_that_the_network_lacks(tmp_path):
    tree(tmp_path, {"dog": 1, "cat": 1})
    (tmp_path / "class_index.json").write_text('{"cat": 7, "dog": 10}')
    assert "class dog has index 10" in refused(DataError, str(tmp_path), 10)


def test_folder_without_class_index(tmp_path):
    tree(tmp_path, {"dog": 1, "cat": 1})
    (tmp_path / "class_index.json").write_text('{"dog": 1}')
    assert refused(DataError, str(tmp_path)).endswith(": cat")


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": "0"}', '{"a": -1}', '{"a": true}', '{"a": 1.5}', "\xff"])
def test_bad_class_index(tmp_path, text):
    tree(tmp_path, {"a": 1})
    (tmp_path / "class_index.json").write_text(text, encoding="latin-1")
    assert "class_index.json" in refused(DataError, str(tmp_path))


@pytest.mark.parametrize("classes", [1, 3])
def test_wrong_number_of_classes(tmp_path, classes):
    assert "wrong number of classes: 2" in refused(DataError, str(tree(tmp_path, {"a": 1, "b": 1})), classes)
    refused(DataError, "digits", classes)


def test_a_class_that_train_lacks(tmp_path):
    tree(tmp_path / "train", {"a": 1, "c": 1})
    tree(tmp_path / "val", {"a": 1, "b": 1})
    for classes in (2, 3):
        assert refused(DataError, str(tmp_path), classes).endswith("different class folders: train/ has no b")


def test_a_part_with_some_of_the_classes_has_their_numbers(tmp_path, caplog):
    caplog.set_level("INFO", logger="cnncompress")
    tree(tmp_path / "train", {"a": 1, "b": 1, "c": 2, "d": 1})
    tree(tmp_path / "val", {"b": 2, "d": 1})
    tree(tmp_path / "test", {"a": 1, "x": 1})
    data = load_data(str(tmp_path), PLAIN, 4)
    assert [data.val.label(i) for i in range(3)] == [1, 1, 3]
    assert [data.train.label(i) for i in range(5)] == [0, 1, 2, 2, 3]
    assert data.test is None
    assert "val/ has 2 of the 4 classes of train/, which are numbered as there" in caplog.text
    assert "test/ is left out: test/ and train/ have different class folders: train/ has no x" in caplog.text
    assert "4 folders in" in refused(DataError, str(tmp_path), 2)


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_class_index_in_one_part_numbers_the_other(tmp_path, part):
    tree(tmp_path / "train", {"a": 1, "b": 1})
    tree(tmp_path / "val", {"a": 1, "b": 1})
    (tmp_path / part / "class_index.json").write_text('{"a": 7, "b": 3}')
    data = load_data(str(tmp_path), PLAIN, 10)
    assert [[s.label(i) for i in range(2)] for s in (data.train, data.val)] == [[7, 3], [7, 3]]


def test_two_class_indices_that_contradict_each_other(tmp_path):
    for part, text in (("train", '{"a": 0, "b": 1}'), ("val", '{"a": 1, "b": 0}')):
        tree(tmp_path / part, {"a": 1, "b": 1})
        (tmp_path / part / "class_index.json").write_text(text)
    assert "different numbers for the class a" in refused(DataError, str(tmp_path), 2)


def test_empty_and_missing(tmp_path):
    assert "holds no images" in refused(DataError, str(tmp_path))
    (tmp_path / "a").mkdir()
    assert "no images" in refused(DataError, str(tmp_path))
    assert "no such folder" in refused(DataError, str(tmp_path / "x"))
    (tmp_path / "file").touch()
    assert "is a file" in refused(DataError, str(tmp_path / "file"))


def test_a_set_of_training_images_alone_is_given_by_its_folder(tmp_path):
    tree(tmp_path / "classes" / "Training", {"a": 2})
    tree(tmp_path / "boxes" / "images", {"train": 2})
    (tmp_path / "boxes" / "labels" / "train").mkdir(parents=True)
    for name, alone in (("classes", "Training"), ("boxes", "images/train")):
        words = refused(DataError, str(tmp_path / name))
        assert f"has {alone.rpartition('/')[2]}/ but no val/ or test/: give {tmp_path / name / alone} alone" in words
        assert len(load_data(str(tmp_path / name / alone), PLAIN, None).val) == 2


def test_unknown_kind_of_data():
    assert "did you mean 'cifar10'" in refused(UsageError, "cifra10:/tmp")
    assert "did you mean 'digits'" in refused(DataError, "digit")
    assert "cifar10:FOLDER" in refused(UsageError, "cifar10")


def test_fingerprint_follows_the_content(tmp_path):
    one = load_data(str(tree(tmp_path / "one", {"a": 2, "b": 1})), PLAIN, 2).fingerprint
    same = load_data(str(tree(tmp_path / "two", {"a": 2, "b": 1})), PLAIN, 2).fingerprint
    other = load_data(str(tree(tmp_path / "three", {"a": 1, "b": 2})), PLAIN, 2).fingerprint
    assert one == same != other
    assert len(one) == 16


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK", "I;16"])
def test_every_image_becomes_rgb(tmp_path, mode):
    suffix = ".tif" if mode in ("CMYK", "I;16") else ".png"
    path = tmp_path / "a" / f"x{suffix}"
    if mode == "I;16":
        path.parent.mkdir()
        Image.fromarray(np.zeros((8, 8), np.uint16)).save(path)
    else:
        write(path, 255, mode)
    image, _ = load_data(str(tmp_path), PLAIN, 1).val[0]
    assert torch.equal(image, torch.full((3, 8, 8), 0.0 if mode == "I;16" else 1.0))


def test_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("cnncompress.data.layout.os.scandir", denied)
    assert refused(DataError, str(tmp_path)) == f"cannot read {tmp_path}: Permission denied"


# --- torchvision sets ---


def mnist(root: Path) -> None:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 20), ("t10k", 10)):
        images = np.arange(count * 784, dtype=np.uint32).astype(np.uint8)
        for name, magic, shape, content in (
            ("images-idx3", 2051, (count, 28, 28), images),
            ("labels-idx1", 2049, (count,), np.arange(count, dtype=np.uint8) % 10),
        ):
            header = struct.pack(f">{len(shape) + 1}I", magic, *shape)
            path = raw / f"{part}-{name}-ubyte"
            path.write_bytes(header + content.tobytes())
            gzip.open(f"{path}.gz", "wb").close()


def test_torchvision_set(tmp_path):
    mnist(tmp_path)
    data: Data = load_data(f"mnist:{tmp_path}", PLAIN, 10)
    assert data.train is not None
    assert (len(data.train), len(data.val)) == (20, 10)
    image, label = data.val[3]
    assert image.shape == (3, 8, 8)
    assert label == 3
    assert data.flip is False
    assert "wrong number of classes: 10" in refused(DataError, f"mnist:{tmp_path}", 1000)


def test_all_sets_are_known_by_their_names_without_torch():
    assert sorted(TORCHVISION_SETS) == sorted(TORCHVISION)
    assert sorted(BUILTIN_SETS) == sorted(BUILTIN)


@pytest.mark.parametrize("name", TORCHVISION)
def test_what_has_a_direction_is_not_mirrored(name, monkeypatch):
    """A mirrored digit, letter or traffic sign is another one, or none."""
    one = Images(lambda i: Image.new("RGB", (8, 8)), ["0"], [0], PLAIN)
    monkeypatch.setattr(sources, "_open_torchvision", lambda *args: one)
    mirrored = {"cifar10", "cifar100", "country211", "dtd", "fashionmnist", "fgvcaircraft", "flowers102", "food101"}
    mirrored |= {"imagenet", "oxfordiiitpet", "stanfordcars", "stl10"}
    assert load_data(f"{name}:.", PLAIN, 1).flip == (name in mirrored)


@pytest.mark.parametrize("name", ["cifar10", "stl10", "flowers102", "imagenet", "svhn", "food101", "gtsrb"])
def test_torchvision_set_without_files(tmp_path, name):
    assert f"cannot open {name} in {tmp_path}" in refused(DataError, f"{name}:{tmp_path}", 10)


def test_damaged_torchvision_set(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps({})[:3])
    assert "cannot open cifar10" in refused(DataError, f"cifar10:{tmp_path}", 10)
