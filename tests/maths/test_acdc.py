"""Cosine transforms against scipy's, the riffle shuffle, and products of diagonals by hand."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.fft
import torch

from cnncompress.maths.acdc import acdc_matrix, dct_matrix, riffle
from cnncompress.maths.descent import descend
from tests.decompositions.helpers import randn


@pytest.mark.parametrize("n", [1, 2, 5, 16, 96])
def test_the_transform_is_scipys_and_orthonormal(n):
    x, matrix = randn(n, 3).numpy(), dct_matrix(n).numpy()
    np.testing.assert_allclose(matrix @ x, scipy.fft.dct(x, axis=0, norm="ortho"), atol=1e-12)
    np.testing.assert_allclose(matrix.T @ x, scipy.fft.idct(x, axis=0, norm="ortho"), atol=1e-12)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(n), atol=1e-12)


def test_the_riffle_takes_halves_in_turns():
    assert riffle(8).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert riffle(5).tolist() == [0, 3, 1, 4, 2]


@pytest.mark.parametrize("n", [2, 8, 10, 52, 64, 7, 33])
def test_the_riffle_has_the_order_of_two_modulo_the_odd_number_below(n):
    """A perfect out-shuffle of n cards: 52 are back after 8 (Diaconis, Graham and Kantor 1983)."""
    odd, order = (n - 1) | 1 if n % 2 == 0 else n, 1
    while pow(2, order, odd) != 1 % odd:
        order += 1
    places, found = riffle(n), 1
    index = places.clone()
    while not torch.equal(index, torch.arange(n)):
        index, found = index[places], found + 1
    assert sorted(places.tolist()) == list(range(n))
    assert found == order
    if n == 52:
        assert found == 8


def by_steps(diagonals: np.ndarray, x: np.ndarray, filters: int) -> np.ndarray:
    """What the layers do to channels x, one operation after the other, as the paper writes them."""
    n = diagonals.shape[-1]
    x = np.resize(x, n)
    for first, second in diagonals:
        x = scipy.fft.idct(second * scipy.fft.dct(first * x, norm="ortho"), norm="ortho")
        halves = x[: (n + 1) // 2], x[(n + 1) // 2 :]
        x = np.empty(n)
        x[::2], x[1::2] = halves
    return np.array([x[i::filters].sum() for i in range(filters)])


@pytest.mark.parametrize(("channels", "filters"), [(6, 6), (3, 6), (6, 2), (4, 7), (7, 4), (1, 5)])
def test_the_matrix_does_what_the_layers_do(channels, filters):
    diagonals, x = randn(3, 2, max(channels, filters)), randn(channels, seed=1)
    expected = by_steps(diagonals.numpy(), x.numpy(), filters)
    np.testing.assert_allclose((acdc_matrix(diagonals, channels, filters) @ x).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(("channels", "filters"), [(4, 4), (2, 5), (5, 3)])
def test_many_matrices_are_made_as_one_by_one(channels, filters):
    diagonals = randn(2, 3, 4, 2, 5 if channels != filters else 4)
    made = acdc_matrix(diagonals, channels, filters)
    assert made.shape == (2, 3, filters, channels)
    torch.testing.assert_close(made[1, 2], acdc_matrix(diagonals[1, 2], channels, filters))


@pytest.mark.parametrize(("channels", "filters"), [(4, 4), (2, 5), (5, 3)])
def test_gradients(channels, filters):
    diagonals = randn(2, 2, max(channels, filters)).requires_grad_()
    assert torch.autograd.gradcheck(lambda d: acdc_matrix(d, channels, filters), diagonals)


def test_descent_finds_a_minimum_and_never_raises_the_loss():
    start = [torch.tensor([-1.2, 1.0], dtype=torch.float64)]

    def rosenbrock(x):
        return (1 - x[0][0]) ** 2 + 100 * (x[0][1] - x[0][0] ** 2) ** 2

    losses = [float(rosenbrock(descend(rosenbrock, start, steps))) for steps in (1, 3, 10, 60)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] < float(rosenbrock(start))
    assert losses[-1] < 1e-12
    (kept,) = descend(lambda x: x[0].square().sum(), [torch.zeros(2)], 5)
    assert torch.equal(kept, torch.zeros(2))
