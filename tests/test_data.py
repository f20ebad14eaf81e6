"""Data sets: layouts, labels, unreadable images, splits, batches and augmentation."""

from __future__ import annotations

import gzip
import json
import pickle
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms._presets import ImageClassification

from cnncompress.data import Augmented, Data, evaluation_transform, load_data, make_loader, split
from cnncompress.errors import CompressError, DataError, UsageError
from cnncompress.spec import Preprocessing

PLAIN = Preprocessing(size=(8, 8), resize=None, mean=(0, 0, 0), std=(1, 1, 1))


def write(path: Path, value: int = 0, mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).convert(mode).save(path)


def tree(root: Path, classes: dict[str, int]) -> Path:
    """Class folders with that many images each, every one of another grey."""
    value = 0
    for name, count in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            write(root / name / f"{i}.png", value)
            value += 1
    return root


def labels(images) -> list[int]:
    return [images.label(i) for i in range(len(images))]


def refused(kind: type[CompressError], spec: str, num_classes: int | None = None) -> str:
    with pytest.raises(kind) as error:
        load_data(spec, PLAIN, num_classes)
    message = str(error.value)
    assert message
    assert "\n" not in message
    return message


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


def test_different_classes_in_train_and_val(tmp_path):
    tree(tmp_path / "train", {"a": 1, "c": 1})
    tree(tmp_path / "val", {"a": 1, "b": 1})
    assert "different class folders" in refused(DataError, str(tmp_path), 2)


def test_empty_and_missing(tmp_path):
    assert "no class folders" in refused(DataError, str(tmp_path))
    (tmp_path / "a").mkdir()
    assert "no images" in refused(DataError, str(tmp_path))
    assert "no such folder" in refused(DataError, str(tmp_path / "x"))
    (tmp_path / "file").touch()
    assert "is a file" in refused(DataError, str(tmp_path / "file"))
    tree(tmp_path / "only" / "train", {"a": 1})
    assert "no val/" in refused(DataError, str(tmp_path / "only"))


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

    monkeypatch.setattr("cnncompress.data.sources.os.scandir", denied)
    assert refused(DataError, str(tmp_path)) == f"cannot read {tmp_path}: Permission denied"


# --- unreadable images ---


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    tree(tmp_path, {"a": 5, "b": 5})
    (tmp_path / "a" / "1.png").write_bytes(b"not an image")
    whole = (tmp_path / "b" / "0.png").read_bytes()
    (tmp_path / "b" / "0.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b" / "4.png").unlink()
    (tmp_path / "b" / "4.png").symlink_to(tmp_path / "nowhere.png")
    return tmp_path


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_images_are_skipped_and_named(damaged, capsys, workers):
    data = load_data(str(damaged), PLAIN, 2)
    batches = list(make_loader(data.val, 3, workers=workers))
    greys = torch.cat([images[:, 0, 0, 0] for images, _ in batches]) * 255
    assert greys.round().int().tolist() == [0, 2, 3, 4, 6, 7, 8]
    assert torch.cat([y for _, y in batches]).tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert data.skipped == ["a/1.png", "b/0.png", "b/4.png"]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "skipped 3 of 10 images" in lines[0]
    assert "a/1.png" in lines[0]
    list(make_loader(data.val, 3, workers=workers))
    assert capsys.readouterr().err == ""


def test_a_batch_without_readable_images_is_left_out(damaged):
    data = load_data(str(damaged), PLAIN, 2)
    batches = list(make_loader(data.val, 1, indices=[0, 1, 2]))
    assert [len(y) for _, y in batches] == [1, 1]


def test_nothing_readable(tmp_path):
    for i in range(3):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / f"{i}.jpg").write_bytes(b"x")
    assert "none of the 3 images" in refused(DataError, str(tmp_path), 1)


def test_training_puts_the_next_image_in_the_place_of_an_unreadable_one(damaged):
    images = load_data(str(damaged), PLAIN, 2).val
    training = Augmented(images, PLAIN, flip=False, seed=0)
    greys = [round(float(training[i][0][0, 0, 0]) * 255) for i in range(10)]
    assert greys == [0, 2, 2, 3, 4, 6, 6, 7, 8, 0]
    assert [training[i][1] for i in range(10)] == [0, 0, 0, 0, 0, 1, 1, 1, 1, 0]


# --- batches and transforms ---


def test_batches_keep_the_order(tmp_path):
    data = load_data(str(tree(tmp_path, {"a": 3, "b": 4})), PLAIN, 2)
    loader = make_loader(data.val, 3)
    assert len(loader) == 3
    assert [len(y) for _, y in loader] == [3, 3, 1]
    assert torch.cat([y for _, y in loader]).tolist() == [0, 0, 0, 1, 1, 1, 1]
    chosen = torch.cat([x[:, 0, 0, 0] for x, _ in make_loader(data.val, 2, indices=[5, 0, 3])])
    assert (chosen * 255).round().int().tolist() == [5, 0, 3]


def test_batches_of_any_map_style_set():
    items = torch.utils.data.TensorDataset(torch.rand(5, 3, 4, 4), torch.arange(5))
    images, numbers = next(iter(make_loader(items, 2, indices=[4, 1])))
    assert torch.equal(images, items.tensors[0][[4, 1]])
    assert numbers.tolist() == [4, 1]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(300, 200), (64, 90)])
def test_transform_is_torchvisions_preset(interpolation, size):
    image = Image.fromarray(np.random.RandomState(0).randint(0, 256, (*size, 3)).astype(np.uint8))
    ours = evaluation_transform(Preprocessing(interpolation=interpolation))
    mode = {"bilinear": 2, "bicubic": 3}[interpolation]
    theirs = ImageClassification(crop_size=224, interpolation=_interpolation(mode))
    assert torch.allclose(ours(image), theirs(image), atol=1e-6)


def _interpolation(mode: int):
    from torchvision.transforms.functional import _interpolation_modes_from_int

    return _interpolation_modes_from_int(mode)


def test_image_of_the_right_size_is_left_as_it_is():
    pixels = np.random.RandomState(0).randint(0, 256, (8, 8, 3)).astype(np.uint8)
    expected = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    assert torch.allclose(evaluation_transform(PLAIN)(Image.fromarray(pixels)), expected, atol=1e-6)


# --- augmentation ---


def test_augmentation_depends_on_seed_epoch_and_index_only():
    data = load_data("digits", PLAIN, 10)
    assert data.train is not None
    training = Augmented(data.train, PLAIN, flip=True, seed=1)
    training.set_epoch(3)
    first = [training[i][0] for i in range(6)]
    state = torch.get_rng_state()
    backwards = [training[i][0] for i in reversed(range(6))][::-1]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, first, backwards))
    in_worker = next(iter(DataLoader(training, batch_size=6, num_workers=1)))[0]
    assert torch.equal(torch.stack(first), in_worker)
    training.set_epoch(4)
    assert not all(torch.equal(a, training[i][0]) for i, a in enumerate(first))


def test_small_images_are_shifted_by_an_eighth():
    data = load_data("digits", Preprocessing((32, 32), None, (0, 0, 0), (1, 1, 1)), 10)
    training = Augmented(data.val, data.val.preprocessing, flip=False, seed=0)
    plain = np.pad(data.val[0][0].numpy(), [(0, 0), (4, 4), (4, 4)], mode="edge")
    shifts = set()
    for epoch in range(40):
        training.set_epoch(epoch)
        image = training[0][0].numpy()
        places = [(y, x) for y in range(9) for x in range(9) if (plain[:, y : y + 32, x : x + 32] == image).all()]
        assert places
        shifts.add(places[0])
    assert len(shifts) > 20


def test_flip_mirrors_half_of_the_images():
    pixels = np.arange(80 * 80 * 3, dtype=np.uint32).reshape(80, 80, 3) % 251
    image = Image.fromarray(pixels.astype(np.uint8))
    preprocessing = Preprocessing((72, 72), 80, (0, 0, 0), (1, 1, 1))
    from cnncompress.data import Images

    images = Images(lambda i: image, ["x"] * 40, [0] * 40, preprocessing)
    mirrored = 0
    for i in range(40):
        plain = Augmented(images, preprocessing, flip=False, seed=0)[i][0]
        flipped = Augmented(images, preprocessing, flip=True, seed=0)[i][0]
        assert plain.shape == (3, 72, 72)
        assert torch.equal(plain, flipped) or torch.equal(plain, flipped.flip(-1))
        mirrored += not torch.equal(plain, flipped)
    assert 10 < mirrored < 30


# --- digits ---


def test_digits_have_fixed_parts():
    data = load_data("digits", PLAIN, 10)
    assert data.train is not None
    assert data.test is not None
    parts = [set(part.positions) for part in (data.train, data.val, data.test)]
    assert [len(p) for p in parts] == [1078, 359, 360]
    assert set.union(*parts) == set(range(1797))
    assert data.flip is False
    assert load_data("digits", PLAIN, None).fingerprint == data.fingerprint


def test_digits_are_scikit_learns_in_colour():
    from sklearn.datasets import load_digits

    data = load_data("digits", Preprocessing((32, 32), None, (0, 0, 0), (1, 1, 1)), 10)
    digits = load_digits()
    image, label = data.val[0]
    source = data.val.positions[0]
    assert label == digits.target[source]
    # Undo the colours: distance from the corner's colour is proportional to the ink.
    distance = (image - image[:, :1, :1]).abs().sum(0).numpy()
    rows, columns = np.nonzero(digits.images[source])
    box = digits.images[source][rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    y, x = np.nonzero(distance)
    drawn = distance[y.min() : y.max() + 1 : 3, x.min() : x.max() + 1 : 3]
    assert drawn.shape == box.shape
    assert np.allclose(drawn / drawn.max(), box / box.max(), atol=0.02)


# --- split ---


def test_split_is_stratified_and_deterministic(tmp_path):
    data = load_data(str(tree(tmp_path, {"a": 40, "b": 20, "c": 10})), PLAIN, 3)
    parts = split(data, 0.2, seed=0)
    assert parts.train is not None
    assert Counter(labels(parts.val)) == {0: 8, 1: 4, 2: 2}
    assert Counter(labels(parts.train)) == {0: 32, 1: 16, 2: 8}
    assert not set(parts.val.positions) & set(parts.train.positions)
    assert split(data, 0.2, seed=0).val.positions == parts.val.positions
    assert split(data, 0.2, seed=1).val.positions != parts.val.positions
    assert split(parts, 0.5, seed=0) is parts


@pytest.mark.parametrize("fraction", [0, 1, -0.5, float("nan"), 0.01])
def test_split_into_nothing_is_refused(tmp_path, fraction):
    data = load_data(str(tree(tmp_path, {"a": 4})), PLAIN, 1)
    with pytest.raises(UsageError):
        split(data, fraction, seed=0)


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


@pytest.mark.parametrize("name", ["cifar10", "stl10", "flowers102", "imagenet", "svhn", "food101", "gtsrb"])
def test_torchvision_set_without_files(tmp_path, name):
    assert f"cannot open {name} in {tmp_path}" in refused(DataError, f"{name}:{tmp_path}", 10)


def test_damaged_torchvision_set(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps({})[:3])
    assert "cannot open cifar10" in refused(DataError, f"cifar10:{tmp_path}", 10)
