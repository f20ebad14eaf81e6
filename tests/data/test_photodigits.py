"""Handwritten digits on photographs."""

from __future__ import annotations

import numpy as np
import pytest

from cnncompress.data import load_data, photodigits
from cnncompress.data.digits import digit_splits
from cnncompress.data.photodigits import COLUMNS, DRAWINGS, MOST, draw_photodigit
from cnncompress.errors import UsageError
from cnncompress.network.preprocessing import Preprocessing

PREPROCESSING = Preprocessing((40, 40), None, (0, 0, 0), (1, 1, 1))


def test_parts_share_no_digit_and_hold_the_drawings_of_every_one():
    data = load_data("photodigits", PREPROCESSING, 10)
    assert data.train is not None
    assert data.test is not None
    parts = {"train": data.train, "val": data.val, "test": data.test}
    digits = {name: np.unique(np.array(part.positions) // MOST) for name, part in parts.items()}
    assert {name: len(part) for name, part in digits.items()} == {"train": 1078, "val": 359, "test": 360}
    assert np.array_equal(np.sort(np.concatenate(list(digits.values()))), np.arange(1797))
    for name, part in parts.items():
        drawn = digits[name][:, None] * MOST + np.arange(DRAWINGS[name])
        assert sorted(part.positions) == sorted(drawn.flatten())
    assert data.flip is False


def test_labels_are_scikit_learns():
    from sklearn.datasets import load_digits

    data = load_data("photodigits:test", PREPROCESSING, 10)
    target = load_digits().target
    assert [data.val.label(i) for i in range(len(data.val))] == [target[i // MOST] for i in data.val.positions]


def test_a_drawing_follows_from_its_numbers():
    first = np.asarray(draw_photodigit(5, 1))
    draw_photodigit(6, 1)
    assert np.array_equal(np.asarray(draw_photodigit(5, 1)), first)
    assert not np.array_equal(np.asarray(draw_photodigit(5, 2)), first)
    assert first.shape == (40, 40, 3)


@pytest.mark.parametrize("part", COLUMNS)
def test_backgrounds_come_from_the_columns_of_their_part(monkeypatch, part):
    columns = np.broadcast_to(np.linspace(0, 255, 640)[None, :, None], (427, 640, 3)).astype(np.uint8)
    monkeypatch.setattr(photodigits, "_photographs", lambda: [columns, columns])
    first, end = (255 * share for share in COLUMNS[part])
    for seed in range(20):
        crop = photodigits._background(np.random.RandomState(seed), part)
        assert first - 1 <= crop.min() < crop.max() <= end + 1


def test_ink_stands_out_from_what_it_covers():
    mask = np.zeros((40, 40, 1), dtype=np.float32)
    mask[10:30, 10:30] = 1
    for seed in range(20):
        grey = np.full((40, 40, 3), 12.0 * seed, dtype=np.float32)
        painted = photodigits._painted(np.random.RandomState(seed), grey, mask)
        assert np.array_equal(painted[mask[..., 0] == 0], grey[mask[..., 0] == 0])
        # 60 in brightness, of which the tints of the channels take up to 40
        assert abs(painted[20, 20] - grey[20, 20]).max() >= 20


def test_pieces_come_from_the_digits_of_the_same_part(monkeypatch):
    drawn = []
    ink, labels = photodigits._digits()
    spy = type("Spy", (), {"__getitem__": lambda _, i: drawn.append(int(i)) or ink[i]})()
    monkeypatch.setattr(photodigits, "_digits", lambda: (spy, labels))
    splits = digit_splits()
    for members in splits.values():
        drawn.clear()
        draw_photodigit(members[0], 0)
        assert len(drawn) == 3
        assert set(drawn) <= set(members)


@pytest.mark.parametrize("name", ["digits", "photodigits"])
def test_the_test_part_alone(name):
    whole, part = load_data(name, PREPROCESSING, 10), load_data(f"{name}:test", PREPROCESSING, 10)
    assert whole.test is not None
    assert part.val.positions == whole.test.positions
    assert (part.train, part.test, part.name) == (None, None, f"{name}:test")
    assert part.fingerprint != whole.fingerprint
    with pytest.raises(UsageError, match="give digits, or digits:test" if name == "digits" else "no part 'train'"):
        load_data(f"{name}:train", PREPROCESSING, 10)
