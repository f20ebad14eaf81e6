"""Batches, transforms, augmentation, splits and images that cannot be read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from torchvision.transforms._presets import ImageClassification

from cnncompress.data import Augmented, augmentation, evaluation_transform, load_data, loading, make_loader, split
from cnncompress.data.augmentation import AUGMENTATIONS
from cnncompress.errors import DataError, UsageError
from cnncompress.network.preprocessing import Preprocessing
from tests.data.helpers import PLAIN, labels, refused, tree

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
def test_unreadable_images_are_skipped_and_named(damaged, caplog, workers):
    data = load_data(str(damaged), PLAIN, 2)
    batches = list(make_loader(data.val, 3, workers=workers))
    greys = torch.cat([images[:, 0, 0, 0] for images, _ in batches]) * 255
    assert greys.round().int().tolist() == [0, 2, 3, 4, 6, 7, 8]
    assert torch.cat([y for _, y in batches]).tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert data.skipped == ["a/1.png", "b/0.png", "b/4.png"]
    assert len(caplog.messages) == 1
    assert "skipped 3 of 10 images" in caplog.messages[0]
    assert "a/1.png" in caplog.messages[0]
    list(make_loader(data.val, 3, workers=workers))
    assert len(caplog.messages) == 1


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


def test_channels_last_is_an_order_in_memory(tmp_path):
    tree(tmp_path, {"a": 2, "b": 1})
    images = load_data(str(tmp_path), PLAIN, 2).val
    for one, other in zip(make_loader(images, 2), make_loader(images, 2, channels_last=True), strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
        assert one[0].is_contiguous()
        assert other[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("bytes_kept", "passes"), [(10**6, 1), (100, 2)])
def test_a_small_set_is_read_once(tmp_path, monkeypatch, bytes_kept, passes):
    tree(tmp_path, {"a": 2, "b": 1})
    images, read = load_data(str(tmp_path), PLAIN, 2).val, []
    monkeypatch.setattr(loading, "KEPT_BYTES", bytes_kept)
    monkeypatch.setattr(images, "read", lambda index, real=images.read: read.append(index) or real(index))
    first = [images[index][0] for index in range(3)]
    again = [images[index][0] for index in range(3)]
    assert len(read) == 3 * passes
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    first[0].zero_()  # what somebody does to an item is his own affair
    assert torch.equal(images[0][0], again[0])


@pytest.mark.parametrize("augment", AUGMENTATIONS)
@pytest.mark.parametrize(("bytes_kept", "passes"), [(3 * 8 * 8 * 3, 1), (3 * 8 * 8 * 3 - 1, 2)])
def test_a_small_set_is_decoded_once_for_all_epochs(tmp_path, monkeypatch, bytes_kept, passes, augment):
    tree(tmp_path, {"a": 2, "b": 1})
    images, read = load_data(str(tmp_path), PLAIN, 2).val, []
    monkeypatch.setattr(augmentation, "KEPT_BYTES", bytes_kept)
    monkeypatch.setattr(images, "read", lambda index, real=images.read: read.append(index) or real(index))
    kept, fresh = (Augmented(images, PLAIN, flip=True, seed=0, augment=augment) for _ in range(2))
    first = [kept[index][0] for index in range(3)]
    kept.set_epoch(1)
    again = [kept[index][0] for index in range(3)]
    assert len(read) == 3 * passes
    fresh.set_epoch(1)
    assert all(torch.equal(a, fresh[index][0]) for index, a in enumerate(again))
    kept.set_epoch(0)  # nothing changed what is kept
    assert all(torch.equal(a, kept[index][0]) for index, a in enumerate(first))


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


def test_augmentations_by_name():
    """`none` is the image as it is evaluated, `trivial` the standard one and one of TrivialAugment's operations."""
    data = load_data("digits", Preprocessing((32, 32), None, (0, 0, 0), (1, 1, 1)), 10)
    named = {n: Augmented(data.val, data.val.preprocessing, flip=False, seed=0, augment=n) for n in AUGMENTATIONS}
    for training in named.values():
        training.set_epoch(2)
    assert all(torch.equal(named["none"][i][0], data.val[i][0]) for i in range(5))
    assert not all(torch.equal(named["standard"][i][0], named["trivial"][i][0]) for i in range(20))
    operations = [step for step in named["trivial"]._transform.transforms if isinstance(step, v2.TrivialAugmentWide)]
    assert len(operations) == 1
    with pytest.raises(UsageError, match="unknown augment 'trivia'; did you mean 'trivial'"):
        Augmented(data.val, PLAIN, flip=False, seed=0, augment="trivia")


# --- split ---


def test_split_is_stratified_and_deterministic(tmp_path):
    data = load_data(str(tree(tmp_path, {"a": 40, "b": 20, "c": 10})), PLAIN, 3)
    parts = split(data, 0.2, seed=0)
    assert parts.train is not None
    assert Counter(labels(parts.val)) == {0: 8, 1: 4, 2: 2}
    assert Counter(labels(parts.train)) == {0: 32, 1: 16, 2: 8}
    assert not set(parts.val.positions) & set(parts.train.positions)
    assert split(data, 0.2, seed=0).val.positions == parts.val.positions
    for other in (1, 2**32, 2**63 - 1):
        assert split(data, 0.2, seed=other).val.positions != parts.val.positions
    assert split(parts, 0.5, seed=0) is parts


@pytest.mark.parametrize("fraction", [0, 1, -0.5, float("nan"), 0.01])
def test_split_into_nothing_is_refused(tmp_path, fraction):
    data = load_data(str(tree(tmp_path, {"a": 4})), PLAIN, 1)
    with pytest.raises(UsageError):
        split(data, fraction, seed=0)
