"""The built-in digits."""

from __future__ import annotations

import numpy as np

from cnncompress.data import load_data
from cnncompress.network.preprocessing import Preprocessing
from tests.data.helpers import PLAIN


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
