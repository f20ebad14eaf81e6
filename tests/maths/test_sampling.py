import pytest
import torch

from cnncompress.maths.sampling import ROWS_AT_ONCE, energies, independent_rows, row_mean


def second_moment(rows):
    return rows.mT @ rows / rows.shape[1]


@pytest.mark.parametrize("rows", [1, ROWS_AT_ONCE, 3 * ROWS_AT_ONCE + 5])
def test_the_mean_of_rows_is_that_in_double_precision(rows):
    torch.manual_seed(0)
    numbers = 1e4 + torch.randn(2, rows, 3)
    torch.testing.assert_close(row_mean(numbers), numbers.double().mean(1), rtol=1e-15, atol=0)


@pytest.mark.parametrize("each", [1, 3, 20])
def test_energies_are_the_norms_of_the_moments_of_images(each):
    torch.manual_seed(0)
    rows = torch.randn(2, 7 * each, 5)
    expected = [sum((x.T @ x / each).square().sum() for x in group.split(each)) for group in rows.double()]
    torch.testing.assert_close(energies(rows, 7), torch.stack(expected), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("copies", [1, 4, 16])
def test_copies_of_a_row_in_an_image_count_once(copies):
    torch.manual_seed(0)
    scales = torch.linspace(0.2, 2, 20)
    rows = (torch.randn(2, 600, 20) * scales).repeat_interleave(copies, 1)
    found = independent_rows(second_moment(rows), energies(rows, 600), 600, 600 * copies)
    assert found == pytest.approx(600, rel=0.05)


def test_rows_that_are_alike_by_half_count_between_an_image_and_a_row():
    """For x = √h·u + √(1 − h)·v, u common to the m rows of an image: E(xᵀx')² is that of equal rows times h²."""
    torch.manual_seed(1)
    images, each, half = 2000, 8, 0.5
    common = torch.randn(1, images, 1, 12).expand(1, images, each, 12)
    rows = (half**0.5 * common + (1 - half) ** 0.5 * torch.randn(1, images, each, 12)).flatten(1, 2)
    found = independent_rows(second_moment(rows), energies(rows, images), images, images * each)
    assert found == pytest.approx(images * each / (1 + (each - 1) * half**2), rel=0.05)


def test_one_image_and_rows_without_variation_count_as_they_are():
    rows = torch.ones(1, 6, 4)
    assert independent_rows(second_moment(rows), energies(rows, 1), 1, 6) == 6
    assert independent_rows(torch.zeros(1, 4, 4), torch.zeros(1), 3, 6) == 6
