"""The errors of all ranks at once against those of fitted chains, and spatial-svd in either order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cnncompress.chains.compose import compose, extract_groups
from cnncompress.chains.spec import ConvSpec
from cnncompress.decompositions import REGISTRY, get_method
from cnncompress.errors import UsageError
from cnncompress.metrics import FROBENIUS, Metric, Moment, layer_metrics, squared_error
from cnncompress.metrics.statistics import LayerStatistics
from cnncompress.planning import choose_method
from tests.decompositions.helpers import METRIC_NAMES, made_up_statistics, randn, relative
from tests.marks import with_slow

FEW_STEPS = {"acdc": "acdc:steps=3"}
VARIANTS = [
    *(FEW_STEPS.get(name, name) for name in sorted(REGISTRY)),
    "spatial-svd:first=horizontal",
    "tucker2:algorithm=hooi,sweeps=2",
]
SPECS = {
    "3x3": ConvSpec(4, 6, (3, 3), padding=(1, 1)),
    "5x2 strided": ConvSpec(3, 4, (5, 2), stride=(2, 1)),
    "grouped": ConvSpec(6, 8, (2, 3), groups=2),
    "1x1": ConvSpec(7, 5),
    "linear": ConvSpec(6, 9, linear=True),
}
MORE_FILTERS_THAN_INPUTS = ConvSpec(2, 30, (2, 2))
SHARES = (0.2, 0.6, 1.0)


def method_of(variant: str):
    return choose_method(variant, ConvSpec(1, 1))[0]


def ranks_of(method, spec: ConvSpec) -> list[tuple[int, ...]]:
    """Every rank of a method with one, and some others of the rest."""
    if method.sliced:
        return [(k,) for k in range(1, method.full_rank(spec)[0] + 1)]
    return sorted({method.rank(spec, share) for share in SHARES})


def fitted_errors(method, weight, spec: ConvSpec, ranks, metrics) -> list[float]:
    """The error of the chain that is fitted at each rank by itself."""
    found = []
    for rank in ranks:
        dense = compose(method.stages(spec, rank), method.factorize(weight, spec, rank, metrics, refine=1))
        found.append(squared_error(metrics, weight - extract_groups(dense, spec.groups)))
    return found


def singular(n: int, rank: int, seed: int) -> torch.Tensor:
    rows = randn(rank, n, seed=seed)
    return rows.mT @ rows / rank


@pytest.mark.parametrize("metric", METRIC_NAMES)
@pytest.mark.parametrize("variant", with_slow(VARIANTS, ("cp", "monochromatic")))
def test_errors_are_those_of_the_chains_fitted_one_by_one(variant, metric):
    method, taken = method_of(variant), 0
    for seed, (name, spec) in enumerate(SPECS.items()):
        if method.refuse(spec) or (name == "5x2 strided" and not method.sliced):  # each rank takes a while
            continue
        taken += 1
        weight, ranks = randn(*spec.weight_shape, seed=seed), ranks_of(method, spec)
        metrics = layer_metrics(metric, spec, made_up_statistics(spec, seed=seed))
        total = squared_error(metrics, weight)
        if method.smooth:  # a curve through a single rank is its error
            errors = torch.cat([method.errors(weight, spec, [rank], metrics) for rank in ranks])
        else:
            errors = method.errors(weight, spec, ranks, metrics)
        assert errors.dtype == torch.float64
        assert errors.tolist() == pytest.approx(fitted_errors(method, weight, spec, ranks, metrics), 1e-5, 1e-9 * total)
    assert taken


@pytest.mark.parametrize("metric", METRIC_NAMES)
@pytest.mark.parametrize("variant", [v for v in VARIANTS if method_of(v).sliced])
def test_errors_fall_with_the_rank_to_nothing(variant, metric):
    method = method_of(variant)
    for spec in [s for s in (*SPECS.values(), MORE_FILTERS_THAN_INPUTS) if not method.refuse(s)]:
        weight, ranks = randn(*spec.weight_shape), ranks_of(method, spec)
        metrics = layer_metrics(metric, spec, made_up_statistics(spec))
        errors, total = method.errors(weight, spec, ranks, metrics), squared_error(metrics, weight)
        slack = 0.02 * total if metric == "mahalanobis" else 1e-12 * total  # its fits stop in local optima
        assert (errors[1:] <= errors[:-1] + slack).all()
        assert 0 < float(errors[0]) < total
        assert 0 <= float(errors[-1]) < 1e-9 * total


@pytest.mark.parametrize("variant", [v for v in VARIANTS if not method_of(v).sliced and method_of(v).exact])
def test_errors_at_full_rank_are_nothing(variant):
    method = method_of(variant)
    for spec in [s for s in SPECS.values() if not method.refuse(s)]:
        weight = randn(*spec.weight_shape)
        for metric in METRIC_NAMES:
            metrics = layer_metrics(metric, spec, made_up_statistics(spec))
            (error,) = method.errors(weight, spec, [method.full_rank(spec)], metrics).tolist()
            assert 0 <= error < 1e-9 * squared_error(metrics, weight)


def test_the_order_of_the_ranks_does_not_matter():
    spec, method = SPECS["3x3"], get_method("spatial-svd")
    weight, ranks = randn(*spec.weight_shape), [(7,), (2,), (7,), (12,), (1,)]
    found = method.errors(weight, spec, ranks)
    assert float(found[0]) == pytest.approx(float(found[2]))
    alone = [float(method.errors(weight, spec, [rank])) for rank in ranks]
    assert found.tolist() == pytest.approx(alone, abs=1e-9 * float(weight.square().sum()))


@pytest.mark.parametrize("with_gamma", [False, True])
@pytest.mark.parametrize("variant", [v for v in VARIANTS if method_of(v).sliced])
def test_inputs_without_variance(variant, with_gamma):
    """Σ of a rank far below its size: what is left counts in the directions that it has, and nowhere else."""
    method = method_of(variant)
    for spec in [s for s in SPECS.values() if not method.refuse(s) and s.groups == 1]:
        F, n = spec.out_channels, spec.weights // spec.out_channels
        weight, ranks = randn(*spec.weight_shape), ranks_of(method, spec)
        sigma, gamma = singular(n, 3, seed=1), singular(F, F, seed=2) if with_gamma else None
        metrics = [Metric(Moment(sigma), gamma, mean=randn(n))]
        matrix = weight.flatten(1)
        outputs = matrix @ sigma @ matrix.mT
        total = float((outputs if gamma is None else gamma @ outputs).trace())
        errors = method.errors(weight, spec, ranks, metrics)
        assert torch.isfinite(errors).all()
        assert errors.tolist() == pytest.approx(fitted_errors(method, weight, spec, ranks, metrics), 1e-4, 1e-5 * total)
        if variant.startswith(("channel", "svd")):  # three directions are all there is
            assert float(errors[min(2, len(errors) - 1)]) < 1e-9 * total


def test_no_weight_at_all():
    spec = SPECS["3x3"]
    for variant in ("spatial-svd", "spatial-svd:first=horizontal", "channel-svd"):
        metrics = layer_metrics("kronecker", spec, made_up_statistics(spec))
        errors = method_of(variant).errors(torch.zeros(spec.weight_shape), spec, [(1,), (3,)], metrics)
        assert errors.tolist() == [0, 0]


# --- spatial-svd with the horizontal stage first ---

HORIZONTAL = method_of("spatial-svd:first=horizontal")


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_horizontal_error_is_the_discarded_spectrum(rank):
    weight, spec = randn(5, 4, 2, 3), ConvSpec(4, 5, (2, 3))
    matrix = weight.numpy().transpose(1, 3, 0, 2).reshape(4 * 3, 5 * 2)
    discarded = float((np.linalg.svd(matrix, compute_uv=False)[rank:] ** 2).sum())
    assert HORIZONTAL.full_rank(spec) == (10,)
    assert float(HORIZONTAL.errors(weight, spec, [(rank,)])) == pytest.approx(discarded, rel=1e-9)
    dense = compose(HORIZONTAL.stages(spec, (rank,)), HORIZONTAL.factorize(weight, spec, (rank,)))
    assert float((dense - weight).square().sum()) == pytest.approx(discarded, rel=1e-9)
    assert HORIZONTAL.spectrum(weight, spec)[0, rank:].square().sum() == pytest.approx(discarded, rel=1e-9)


def statistics_of(x: torch.Tensor, gradient: torch.Tensor, sensitivity: torch.Tensor, wide: bool) -> LayerStatistics:
    """Those of patches [R, g, C/g, kh, kw], with their moment or, as for very wide layers, with the patches."""
    rows = x.flatten(2)
    centred = rows - rows.mean(0)
    moment = torch.einsum("rgm,rgn->gmn", centred, centred) / len(x)
    return LayerStatistics(
        images=len(x),
        rows=len(x),
        mean=rows.mean(0),
        moment=None if wide else moment,
        samples=centred.flatten(1) if wide else None,
        gradient=gradient,
        sensitivity=sensitivity,
    )


@pytest.mark.parametrize(
    ("metric", "wide"), [*((name, False) for name in METRIC_NAMES), ("data-covariance", True), ("kronecker", True)]
)
@pytest.mark.parametrize("spec", [SPECS["5x2 strided"], SPECS["grouped"]], ids=["5x2", "grouped"])
def test_horizontal_is_vertical_for_the_transposed_layer(spec, metric, wide):
    """The same images on their side, seen by the same filters on their side."""
    flipped = spec.replace(kernel_size=spec.kernel_size[::-1], stride=spec.stride[::-1])
    weight, x = randn(*spec.weight_shape), randn(200, spec.groups, *spec.weight_shape[1:], seed=1)
    x = x * torch.exp(randn(*x.shape[1:], seed=2)) + randn(*x.shape[1:], seed=3)
    gradient, sensitivity = singular(spec.out_channels, 40, seed=4), randn(*spec.weight_shape, seed=5).exp()
    here = layer_metrics(metric, spec, statistics_of(x, gradient, sensitivity, wide))
    there = layer_metrics(metric, flipped, statistics_of(x.mT, gradient, sensitivity.mT, wide))
    vertical, ranks = get_method("spatial-svd"), [(2,), (5,)]
    assert HORIZONTAL.full_rank(spec) == vertical.full_rank(flipped)
    errors = HORIZONTAL.errors(weight, spec, ranks, here)
    torch.testing.assert_close(errors, vertical.errors(weight.mT, flipped, ranks, there), rtol=1e-6, atol=1e-9)
    for rank in ranks:
        chain, other = HORIZONTAL.stages(spec, rank), vertical.stages(flipped, rank)
        assert [s.kernel_size for s in chain] == [(1, spec.kernel_size[1]), (spec.kernel_size[0], 1)]
        assert [s.stride for s in chain] == [s.stride[::-1] for s in other]
        found = compose(chain, HORIZONTAL.factorize(weight, spec, rank, here))
        expected = compose(other, vertical.factorize(weight.mT, flipped, rank, there)).mT
        assert relative(found, expected) < 1e-6


def test_the_better_order_is_the_one_of_the_planted_structure():
    """Filters that are sums of two column-then-row products are found by the vertical order only."""
    spec = ConvSpec(6, 8, (3, 3))
    planted = torch.einsum("kcy,fkx->fcyx", randn(2, 6, 3, seed=1), randn(8, 2, 3, seed=2))
    total = float(planted.square().sum())
    assert float(get_method("spatial-svd").errors(planted, spec, [(2,)], [FROBENIUS])) < 1e-10 * total
    assert float(HORIZONTAL.errors(planted, spec, [(2,)], [FROBENIUS])) > 0.1 * total


@pytest.mark.parametrize("value", ["diagonal", "", "Horizontal"])
def test_an_order_that_there_is_not(value):
    with pytest.raises(UsageError, match=r"option first .* vertical, horizontal, not") as raised:
        choose_method(f"spatial-svd:first={value}", SPECS["3x3"])
    assert "\n" not in str(raised.value)
