from itertools import combinations

import numpy as np
import pytest
import torch

from cnncompress.maths.channels import inputs_of
from cnncompress.maths.elimination import Problem, eliminate, refit


def problem(filters: int, channels: int, each: int, seed: int, samples: int = 400) -> tuple[Problem, torch.Tensor]:
    """A problem with correlated inputs, and the samples [R, n] that its moment is of."""
    generator = torch.Generator().manual_seed(seed)
    n = channels * each
    mix = torch.randn(n, n, dtype=torch.float64, generator=generator)
    x = torch.randn(samples, n, dtype=torch.float64, generator=generator) @ mix
    return Problem(torch.randn(filters, n, dtype=torch.float64, generator=generator), x.mT @ x / samples), x


def least_error(problem: Problem, x: torch.Tensor, kept: list[int], each: int) -> float:
    """The error of the best weights of the kept channels alone, by NumPy's least squares on the samples."""
    columns = np.concatenate([np.arange(c * each, (c + 1) * each) for c in sorted(kept)]) if kept else []
    wanted = (x @ problem.weight.mT).numpy()
    if not len(columns):
        return float((wanted**2).sum() / len(x))
    found = np.linalg.lstsq(x.numpy()[:, columns], wanted, rcond=None)[0]
    return float(((wanted - x.numpy()[:, columns] @ found) ** 2).sum() / len(x))


@pytest.mark.parametrize(("filters", "channels", "each"), [(5, 6, 1), (3, 5, 4), (9, 4, 9), (1, 7, 2)])
def test_errors_are_those_of_least_squares_on_the_channels_kept(filters: int, channels: int, each: int) -> None:
    one, x = problem(filters, channels, each, seed=channels)
    order, errors = eliminate([one], channels)
    assert sorted(order.tolist()) == list(range(channels))
    for count in range(channels + 1):
        expected = least_error(one, x, order[:count].tolist(), each)
        assert float(errors[count]) == pytest.approx(expected, rel=1e-6, abs=1e-9 * float(errors[0]))


@pytest.mark.parametrize("each", [1, 3])
def test_each_step_takes_out_the_channel_whose_loss_costs_least(each: int) -> None:
    channels = 6
    one, x = problem(4, channels, each, seed=3)
    order = eliminate([one], channels)[0].tolist()
    for count in range(channels, 1, -1):
        without = {c: least_error(one, x, [k for k in order[:count] if k != c], each) for c in order[:count]}
        assert order[count - 1] == min(without, key=lambda c: without[c])


def test_one_channel_less_is_the_best_of_all_subsets() -> None:
    channels, each = 7, 2
    one, x = problem(4, channels, each, seed=8)
    errors = eliminate([one], channels)[1]
    best = min(least_error(one, x, list(kept), each) for kept in combinations(range(channels), channels - 1))
    assert float(errors[channels - 1]) == pytest.approx(best, rel=1e-8)


def test_a_channel_that_is_a_sum_of_others_costs_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 5, dtype=torch.float64, generator=generator)
    x[:, 2] = x[:, 0] - 2 * x[:, 4]
    weight = torch.randn(3, 5, dtype=torch.float64, generator=generator)
    order, errors = eliminate([Problem(weight, x.mT @ x / 300)], 5)
    assert order[-1] in (0, 2, 4)
    assert float(errors[4]) < 1e-6 * float(errors[3])


def test_errors_of_problems_that_share_their_channels_are_added() -> None:
    first, x = problem(3, 5, 1, seed=1)
    second, y = problem(4, 5, 4, seed=2)
    order, errors = eliminate([first, second], 5)
    for count in range(6):
        kept = order[:count].tolist()
        expected = least_error(first, x, kept, 1) + least_error(second, y, kept, 4)
        assert float(errors[count]) == pytest.approx(expected, rel=1e-6, abs=1e-9 * float(errors[0]))


def test_the_refit_is_that_of_least_squares() -> None:
    one, x = problem(4, 6, 3, seed=5)
    inputs = inputs_of(torch.tensor([4, 0, 3]), 3)
    assert inputs.tolist() == [12, 13, 14, 0, 1, 2, 9, 10, 11]
    expected = np.linalg.lstsq(x.numpy()[:, inputs], (x @ one.weight.mT).numpy(), rcond=None)[0].T
    assert np.allclose(refit(one, inputs).numpy(), expected, rtol=1e-7, atol=1e-9)
