"""The knapsack against brute force, a textbook dynamic program, and arithmetic."""

from __future__ import annotations

import ctypes
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnncompress.planning.solver import highs, knapsack
from cnncompress.planning.solver.knapsack import Selection, solve

INF = math.inf

ERRORS = {
    "ties": st.integers(0, 3).map(float),
    "real": st.floats(0, 1),
    "wild": st.floats(-12, 3).map(lambda x: 10**x),
    "some infinite": st.sampled_from([0.0, 1e-9, 1.0, 2.5, INF]),
}
COSTS = {"ties": st.integers(0, 4).map(float), "real": st.floats(0, 1), "macs": st.integers(10**6, 10**9).map(float)}


@st.composite
def problems(draw, limits: tuple[int, ...] = (1, 2), errors: tuple[str, ...] = tuple(ERRORS)):
    """Costs, errors and limits of up to five layers; the limits lie between nothing and a little above everything."""
    error = ERRORS[draw(st.sampled_from(errors))]
    kinds = [COSTS[draw(st.sampled_from(sorted(COSTS)))] for _ in range(draw(st.sampled_from(limits)))]
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    e = [np.array(draw(st.lists(error, min_size=n, max_size=n))) for n in sizes]
    c = [np.array([draw(st.lists(kind, min_size=n, max_size=n)) for kind in kinds]).T for n in sizes]
    most = sum(part.max(0) for part in c)
    return c, e, [draw(st.floats(0, 1.1)) * float(m) for m in most]


def fits(sums, limits, slack: float) -> bool:
    return all(s <= b * (1 + slack) for s, b in zip(sums, limits, strict=True))


def brute_force(costs, errors, limits, slack: float = 0.0) -> float:
    """The smallest finite error of a selection within the limits, or infinity."""
    best = INF
    for choice in itertools.product(*(range(len(e)) for e in errors)):
        sums = [math.fsum(c[j, k] for c, j in zip(costs, choice, strict=True)) for k in range(len(limits))]
        if fits(sums, limits, slack):
            best = min(best, math.fsum(e[j] for e, j in zip(errors, choice, strict=True)))
    return best


def check(found: Selection, costs, errors, limits) -> None:
    """What holds for every selection: its sums are those of its choice, within the limits, not below its bound."""
    assert found.error == math.fsum(e[j] for e, j in zip(errors, found.choice, strict=True))
    for k, total in enumerate(found.costs):
        assert total == math.fsum(c[j, k] for c, j in zip(costs, found.choice, strict=True))
    assert fits(found.costs, limits, 2e-12)
    assert found.bound <= found.error < INF


def assert_optimal(found: Selection | None, costs, errors, limits, rel: float) -> None:
    """The optimum, up to selections that lie on a limit to rounding, which may count or not."""
    strict, lenient = (brute_force(costs, errors, limits, slack) for slack in (-4e-12, 4e-12))
    if found is None:
        assert strict == INF
        return
    check(found, costs, errors, limits)
    assert lenient * (1 - rel) <= found.error
    assert found.error <= strict * (1 + rel)


@settings(deadline=None, max_examples=300)
@given(problems())
def test_equals_brute_force(problem):
    found = solve(*problem)
    assert_optimal(found, *problem, rel=1e-11)
    assert found is None or found.proven


@settings(deadline=None, max_examples=150)
@given(problems())
def test_branch_and_bound_equals_brute_force(problem):
    """HiGHS in place of the dynamic program, which would take all of these; its own tolerances may leave no proof."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knapsack, "MAX_STATES", 0)
        found = solve(*problem)
    if found is None or found.proven:
        assert_optimal(found, *problem, rel=1e-6)
    else:
        check(found, *problem)
        assert found.bound <= brute_force(*problem)


@settings(deadline=None, max_examples=100)
@given(problems(limits=(1,)))
def test_without_time_the_selection_fits_and_the_bound_holds(problem):
    found, best = solve(*problem, time_limit=0.0), brute_force(*problem)
    if found is None:
        assert best == INF
        return
    check(found, *problem)
    assert found.bound <= best * (1 + 1e-11)
    if found.proven:
        assert_optimal(found, *problem, rel=1e-11)


@settings(deadline=None, max_examples=100)
@given(problems(), st.floats(1.0, 2.0))
def test_a_larger_limit_never_gives_a_larger_error(problem, factor):
    costs, errors, limits = problem
    small, large = solve(*problem), solve(costs, errors, [factor * b for b in limits])
    if small is not None:
        assert large is not None
        assert large.error <= small.error * (1 + 1e-11)


def random_problem(seed: int, layers: int, candidates: int, limits: int):
    """Whole costs 1..40 and errors that fall with the first cost over many orders of magnitude."""
    rng = np.random.default_rng(seed)
    costs = [rng.integers(1, 41, (candidates, limits)).astype(float) for _ in range(layers)]
    errors = [10 ** (rng.uniform(-6, 0) - 0.1 * c[:, 0] + rng.normal(0, 0.3, candidates)) for c in costs]
    return costs, errors


def table(costs, errors, limit: int) -> float:
    """The smallest error by the textbook dynamic program over whole costs of one limit."""
    best = np.zeros(limit + 1)
    for c, e in zip(costs, errors, strict=True):
        steps = [
            np.concatenate([np.full(int(k), INF), best[: limit + 1 - int(k)]]) + x for k, x in zip(c, e, strict=True)
        ]
        best = np.min(steps, axis=0)
    return float(best[-1])


@pytest.mark.parametrize("states", [knapsack.MAX_STATES, 0])
@pytest.mark.parametrize(("seed", "limit"), [(0, 300), (1, 500), (2, 900), (3, 1300)])
def test_equals_the_textbook_program_on_many_layers(seed, limit, states, monkeypatch):
    monkeypatch.setattr(knapsack, "MAX_STATES", states)
    costs, errors = random_problem(seed, layers=40, candidates=20, limits=1)
    found = solve(costs, errors, [limit])
    check(found, costs, errors, [limit])
    assert found.proven
    assert found.error == pytest.approx(table([c[:, 0] for c in costs], errors, limit), rel=1e-9)


@pytest.mark.parametrize("states", [knapsack.MAX_STATES, 0])
def test_a_second_limit_that_does_not_bind_changes_nothing(states, monkeypatch):
    monkeypatch.setattr(knapsack, "MAX_STATES", states)
    costs, errors = random_problem(4, layers=30, candidates=15, limits=2)
    found = solve(costs, errors, [400, 30 * 40])  # no selection costs more than 40 a layer
    assert found.proven
    assert found.error == pytest.approx(table([c[:, 0] for c in costs], errors, 400), rel=1e-9)


def test_out_of_time_on_many_layers():
    """The Lagrangian selection is near the optimum, but not always it."""
    above = []
    for seed in range(5, 13):
        costs, errors = random_problem(seed, layers=40, candidates=20, limits=1)
        found, best = solve(costs, errors, [500], time_limit=0.0), table([c[:, 0] for c in costs], errors, 500)
        check(found, costs, errors, [500])
        assert not found.proven
        assert found.bound <= best * (1 + 1e-12)
        assert 1 - 1e-12 <= found.error / best < 1.2
        above.append(found.error / best - 1)
    assert max(above) > 1e-3


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)[:, None]


def test_by_hand():
    costs, errors = [column(10, 6, 1), column(10, 5, 2)], [np.array([0.0, 3, 7]), np.array([0.0, 1, 9])]
    # within 15: (0, 1) costs 15 at an error of 1; (1, 0) costs 16
    assert solve(costs, errors, [15]) == Selection((0, 1), 1.0, (15.0,), 1.0, True)
    # within 11: (1, 1) costs 11 at 4; within 6: (2, 1) at 8; below 3 nothing fits
    assert solve(costs, errors, [11]) == Selection((1, 1), 4.0, (11.0,), 4.0, True)
    assert solve(costs, errors, [6]) == Selection((2, 1), 8.0, (6.0,), 8.0, True)
    assert solve(costs, errors, [3]) == Selection((2, 2), 16.0, (3.0,), 16.0, True)
    assert solve(costs, errors, [2.999]) is None


def test_limits_at_the_edges():
    costs, errors = [column(0, 3), column(0, 4)], [np.array([5.0, 1.0]), np.array([2.0, 0.0])]
    assert solve(costs, errors, [0]).choice == (0, 0)
    assert solve(costs, errors, [INF]) == Selection((1, 1), 1.0, (7.0,), 1.0, True)
    assert solve(costs, errors, [-1]) is None
    assert solve([c[:, :0] for c in costs], errors, []) == Selection((1, 1), 1.0, (), 1.0, True)
    assert solve([], [], [1.0]) == Selection((), 0.0, (0.0,), 0.0, True)


def test_an_infinite_error_is_never_chosen():
    costs = [column(1, 5), column(1, 5)]
    assert solve(costs, [np.array([INF, 2.0]), np.array([3.0, 1.0])], [6]).choice == (1, 0)
    assert solve(costs, [np.array([INF, 2.0]), np.array([3.0, INF])], [5]) is None
    assert solve(costs, [np.array([INF, INF]), np.array([3.0, 1.0])], [9]) is None


@pytest.mark.parametrize("states", [knapsack.MAX_STATES, 0])
def test_limits_that_exclude_each_other(states, monkeypatch):
    monkeypatch.setattr(knapsack, "MAX_STATES", states)
    costs, errors = [np.array([[1.0, 9.0], [9.0, 1.0]])] * 2, [np.array([1.0, 2.0])] * 2
    assert solve(costs, errors, [2, 18]).choice == (0, 0)
    assert solve(costs, errors, [10, 10]).error == 3.0  # one of each
    assert solve(costs, errors, [9, 9]) is None  # though either limit alone could be kept


def test_an_optimum_far_below_the_first_guess(monkeypatch):
    """Four layers and four places for one each, or 1e3 for staying out: no single swap leads from there to 15e-10.

    HiGHS alone, at the scale of 1e3, cannot tell 15e-10 from 22e-10.
    """
    monkeypatch.setattr(knapsack, "MAX_STATES", 0)
    places = [{1: 8, 3: 1, 2: 6}, {2: 2, 0: 4, 1: 5}, {2: 6, 3: 4, 1: 1}, {3: 4, 1: 7}]
    costs = [np.vstack([np.eye(4)[list(row)], np.zeros(4)]) for row in places]
    errors = [np.array([*(1e-10 * x for x in row.values()), 1e3]) for row in places]
    found = solve(costs, errors, [1] * 4)
    assert found.choice == (2, 1, 2, 0)  # 6 + 4 + 1 + 4; with the last layer in place 1 instead: 1 + 4 + 6 + 7
    assert found.proven


@pytest.mark.parametrize("seed", [1, 3, 6])
def test_branch_and_bound_and_the_dynamic_program_agree_on_real_costs(seed, monkeypatch):
    """HiGHS's tolerances would let it exceed the limit, or stop early, if the problem were not scaled up."""
    rng = np.random.default_rng(seed)
    costs = [rng.uniform(1, 40, (20, 1)) for _ in range(40)]
    errors = [10 ** (rng.uniform(-6, 0) - 0.1 * c[:, 0] + rng.normal(0, 0.3, 20)) for c in costs]
    expected = solve(costs, errors, [900])
    monkeypatch.setattr(knapsack, "MAX_STATES", 0)
    found = solve(costs, errors, [900])
    check(found, costs, errors, [900])
    assert found.proven
    assert found.error == pytest.approx(expected.error, rel=1e-9)


@pytest.mark.parametrize(
    ("costs", "errors", "limits"),
    [
        ([column(1)], [np.array([math.nan])], [1]),
        ([column(1)], [np.array([-1.0])], [1]),
        ([column(math.nan)], [np.array([1.0])], [1]),
        ([column(-1)], [np.array([1.0])], [1]),
        ([column(INF)], [np.array([1.0])], [1]),
        ([column(1)], [np.array([1.0])], [math.nan]),
        ([column(1)], [np.array([1.0])], [1, 2]),
        ([column(1, 2)], [np.array([1.0])], [1]),
        ([column(1)], [np.array([1.0])] * 2, [1]),
        ([np.zeros((0, 1))], [np.zeros(0)], [1]),
    ],
)
def test_values_that_make_no_sense(costs, errors, limits):
    with pytest.raises(ValueError, match=r"layer|limit"):
        solve(costs, errors, limits)


def test_what_c_code_prints_stays_off_the_standard_output(capfd):
    libc = ctypes.CDLL(None)
    with highs._silence():
        libc.puts(b"debugging")
    libc.puts(b"result")
    libc.fflush(None)
    assert capfd.readouterr().out == "result\n"
