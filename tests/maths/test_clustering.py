"""Balanced k-means against brute force, planted clusters and its own definition."""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest
import torch

from cnncompress.maths.clustering import assign, balanced_kmeans, divisors, nearest_divisor
from tests.decompositions.helpers import generator, randn
from tests.orders import never_rises

SUBSPACES = [None, 1, 2]


def energy_of(points: np.ndarray, labels: np.ndarray, subspace: int | None) -> float:
    """The sum of distances to means or to subspaces, straight from the definition."""
    total = 0.0
    for label in set(labels.tolist()):
        members = points[labels == label]
        if subspace is None:
            total += ((members - members.mean(0)) ** 2).sum()
        else:
            total += (np.linalg.svd(members, compute_uv=False)[subspace:] ** 2).sum()
    return total


def planted_subspaces(k: int, size: int, d: int, dim: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Shuffled points on k random subspaces of dimension `dim`, and the subspace of each."""
    bases = randn(k, d, dim, seed=seed)
    points = (bases @ randn(k, dim, size, seed=seed + 1)).mT.reshape(k * size, d)
    order = torch.randperm(k * size, generator=generator(seed))
    return points[order], torch.arange(k).repeat_interleave(size)[order]


def same_clusters(one: torch.Tensor, two: torch.Tensor) -> bool:
    return torch.equal(one[:, None] == one, two[:, None] == two)


def test_assignment_is_the_cheapest_balanced_one():
    costs = randn(6, 3)
    cheapest = min(sum(float(costs[i, slot // 2]) for i, slot in enumerate(p)) for p in permutations(range(6)))
    labels = assign(costs)
    assert torch.bincount(labels).tolist() == [2, 2, 2]
    assert float(costs.gather(1, labels[:, None]).sum()) == pytest.approx(cheapest)


def test_clusters_are_equal_even_where_the_points_are_not():
    # {0, .1} and {.2, 10}: 2·.05² + 2·4.9²
    found = balanced_kmeans(torch.tensor([[0.0], [0.1], [0.2], [10.0]]), 2)
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert found.energy == pytest.approx(48.025)


@pytest.mark.parametrize("subspace", SUBSPACES)
def test_energy_never_rises_and_is_what_it_is_defined_as(subspace):
    steps = 0
    for seed in range(5):
        points = randn(60, 7, seed=seed)
        found = balanced_kmeans(points, 5, subspace=subspace, restarts=3, seed=seed)
        assert torch.bincount(found.labels).tolist() == [12] * 5
        assert never_rises(found.history)
        assert found.history[-1] == pytest.approx(found.energy)
        assert found.energy == pytest.approx(energy_of(points.numpy(), found.labels.numpy(), subspace))
        steps += len(found.history)
    assert steps > 15


@pytest.mark.parametrize("subspace", SUBSPACES[:2])
def test_many_restarts_find_the_best_of_all_partitions(subspace):
    points = randn(8, 3, seed=4)
    energies = []
    for chosen in combinations(range(8), 4):
        labels = np.isin(np.arange(8), chosen).astype(int)
        energies.append(energy_of(points.numpy(), labels, subspace))
    found = balanced_kmeans(points, 2, subspace=subspace, restarts=50)
    assert found.energy == pytest.approx(min(energies))


@pytest.mark.parametrize(("planted", "dim", "d"), [(1, 1, 6), (2, 2, 30), (4, 4, 60), (3, 5, 60)])
def test_planted_subspaces_are_found_whatever_the_signs(planted, dim, d):
    """Also where `dim` is more than they need, so that many divisions have no energy."""
    points, truth = planted_subspaces(k=4, size=12, d=d, dim=planted)
    signs = torch.randint(0, 2, (len(points), 1), generator=generator(3)) * 2 - 1
    for version in (points, points * signs):
        found = balanced_kmeans(version, 4, subspace=dim, restarts=20)
        assert same_clusters(found.labels, truth)
        assert found.energy < 1e-10 * float(points.square().sum())


def test_euclidean_clusters_do_not_join_opposite_points():
    centre = torch.tensor([3.0, 0.0, 0.0])
    points = torch.cat([centre + 0.1 * randn(6, 3, seed=1), -centre + 0.1 * randn(6, 3, seed=2)])
    found = balanced_kmeans(points, 2)
    assert found.labels.tolist() == [0] * 6 + [1] * 6
    assert found.order.tolist() == list(range(12))


@pytest.mark.parametrize("subspace", SUBSPACES[:2])
def test_only_inner_products_count_and_the_seed_decides(subspace):
    points = randn(24, 5)
    rotation = torch.linalg.qr(randn(200, 5, seed=1))[0]
    one = balanced_kmeans(points, 4, subspace=subspace, seed=7)
    again = balanced_kmeans(points, 4, subspace=subspace, seed=7)
    turned = balanced_kmeans(points @ rotation.mT, 4, subspace=subspace, seed=7)
    assert torch.equal(one.labels, again.labels)
    assert one.history == again.history
    assert torch.equal(one.labels, turned.labels)


@pytest.mark.parametrize("subspace", SUBSPACES[:2])
@pytest.mark.parametrize("k", [1, 2, 6])
def test_equal_and_zero_points_are_no_obstacle(subspace, k):
    for points in (torch.zeros(6, 3), torch.ones(6, 3)):
        found = balanced_kmeans(points, k, subspace=subspace)
        assert torch.bincount(found.labels).tolist() == [6 // k] * k
        assert found.energy == pytest.approx(0, abs=1e-12)


def test_names_follow_the_order_of_the_points():
    found = balanced_kmeans(randn(20, 4), 5)
    first_seen = list(dict.fromkeys(found.labels.tolist()))
    assert first_seen == [0, 1, 2, 3, 4]
    assert found.labels[found.order].tolist() == sorted(found.labels.tolist())
    assert balanced_kmeans(randn(5, 2), 5).labels.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("shape", "k", "more"),
    [
        ((7, 2), 2, {}),
        ((6, 2), 0, {}),
        ((6, 2, 2), 2, {}),
        ((6, 2), 2, {"subspace": 0}),
        ((6, 2), 2, {"restarts": 0}),
    ],
)
@pytest.mark.unchecked
def test_what_cannot_be_clustered_is_refused(shape, k, more):
    with pytest.raises(ValueError, match=r"clusters|at least 1"):
        balanced_kmeans(torch.zeros(shape), k, **more)


def test_divisors():
    assert divisors(12) == [1, 2, 3, 4, 6, 12]
    assert [nearest_divisor(n, about) for n, about in [(96, 48), (3, 2), (7, 2), (7, 6), (15, 4), (8, 100)]] == [
        *(48, 3, 1, 7, 5, 8)
    ]
