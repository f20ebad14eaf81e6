"""What a layer may become: which ranks are looked at, what they cost, what error they have, why there are none."""

from __future__ import annotations

import pytest
import torch

from cnncompress.chains.compose import compose, extract_groups
from cnncompress.chains.spec import Call, ConvSpec
from cnncompress.decompositions import get_method
from cnncompress.metrics import REGISTRY, layer_metrics, squared_error
from cnncompress.planning.candidates import (
    AUTO,
    GRID_RANKS,
    Common,
    Family,
    make_layer,
    ranks_of,
    spread,
    usual_multiple,
)
from cnncompress.planning.rules import Kept
from tests.decompositions.helpers import made_up_statistics, randn

SPEC = ConvSpec(12, 18, (3, 3), padding=(1, 1), bias=True)
CALL = Call(0, SPEC, ((7, 5),))


def layer(spec=SPEC, methods=AUTO, metric="frobenius", multiple=1, centred=False, size=(7, 5)):
    call = Call(0, spec, (size,))
    metrics = layer_metrics(metric, spec, made_up_statistics(spec))
    return make_layer("conv", call, randn(*spec.weight_shape), methods, metrics, Common(centred, multiple))


def test_every_rank_that_is_cheaper_and_no_other():
    vertical, horizontal, channel, cp = layer().families
    dense = 18 * 12 * 9
    assert cp.ranks == [(k,) for k in range(1, 109) if k * (12 + 9 + 18) < dense]
    assert vertical.ranks == horizontal.ranks == [(k,) for k in range(1, 37) if k * (12 * 3 + 18 * 3) < dense]
    assert channel.ranks == [(k,) for k in range(1, 19) if k * (12 * 9 + 18) < dense]
    assert [f.method.settings.get("first") for f in (vertical, horizontal, channel)] == ["vertical", "horizontal", None]


def test_fewer_macs_are_not_enough():
    """Stride 2: the horizontal stage of spatial-svd runs on all rows, so MACs and parameters set different limits."""
    spec = SPEC.replace(stride=(2, 2))
    vertical, horizontal, *_ = layer(spec, size=(8, 8)).families
    for family, first_positions in ((vertical, 4 * 8), (horizontal, 8 * 4)):
        macs = [k * (36 * first_positions + 54 * 16) for k in range(1, 37)]
        cheaper = [k for k, m in enumerate(macs, 1) if m < 16 * 18 * 12 * 9 and k * 90 < 18 * 12 * 9]
        assert [rank for (rank,) in family.ranks] == cheaper
        assert 2 * len(cheaper) < 36


def test_costs_are_those_of_the_chain_and_keeping_costs_what_the_layer_does():
    found = layer().candidates()
    assert found[0].plan is None
    assert found[0].error == 0
    assert found[0].costs == {"macs": 18 * 12 * 9 * 35, "params": 18 * 12 * 9 + 18}
    for candidate in found[1:]:
        (k,) = candidate.plan.rank
        weights = (
            k * {"channel-svd": 12 * 9 + 18, "cp": 12 + 9 + 18, "spatial-svd": 12 * 3 + 18 * 3}[candidate.plan.method]
        )
        assert candidate.costs == {"macs": weights * 35, "params": weights + 18}
    assert {c.family for c in found[1:]} == {0, 1, 2, 3}


def test_all_calls_of_a_layer_count():
    call = Call(0, SPEC, ((7, 5), (4, 4)))
    metrics = layer_metrics("frobenius", SPEC, None)
    found = make_layer("conv", call, randn(*SPEC.weight_shape), AUTO, metrics, Common(multiple=1)).candidates()
    assert found[0].costs["macs"] == 18 * 12 * 9 * (35 + 16)
    assert found[1].costs["macs"] == 90 * (35 + 16)


def test_a_centred_metric_gives_every_chain_a_bias():
    spec = SPEC.replace(bias=False)
    plain, centred = layer(spec).candidates(), layer(spec, centred=True).candidates()
    assert all(not c.plan.chain[-1].bias for c in plain[1:])
    assert all(c.plan.chain[-1].bias for c in centred[1:])
    assert [c.costs["params"] - p.costs["params"] for c, p in zip(centred, plain, strict=True)] == [0] + [18] * (
        len(plain) - 1
    )
    assert centred[1].plan.spec == spec


@pytest.mark.few(2)
@pytest.mark.parametrize("metric", REGISTRY)
@pytest.mark.parametrize("groups", [1, 2])
def test_errors_are_relative_or_in_nats(metric, groups):
    spec = SPEC.replace(groups=groups)
    weight, metrics = randn(*spec.weight_shape), layer_metrics(metric, spec, made_up_statistics(spec))
    scale = 0.5 if metric == "kronecker" else 1 / squared_error(metrics, weight)
    for candidate in layer(spec, metric=metric).candidates()[1::9]:
        method = get_method(candidate.plan.method, **candidate.plan.options).quick()
        dense = compose(candidate.plan.chain, method.factorize(weight, spec, candidate.plan.rank, metrics))
        error = squared_error(metrics, weight - extract_groups(dense, groups))
        if method.smooth:
            assert candidate.error == pytest.approx(scale * error, rel=0.5)
        else:
            assert candidate.error == pytest.approx(scale * error, rel=1e-4)


def test_the_factor_scales_the_errors_and_not_keeping():
    one = layer()
    before = [c.error for c in one.candidates()]
    one.factor = 7.0
    assert [c.error for c in one.candidates()] == pytest.approx([7 * e for e in before])
    assert before[0] == 0 < min(before[1:])


@pytest.mark.parametrize("multiple", [4, 5])
def test_multiples(multiple):
    for family in layer(multiple=multiple).families:
        assert family.ranks
        assert all(rank % multiple == 0 for (rank,) in family.ranks)
    for rank in (r for f in layer(methods=["tucker2"], multiple=multiple).families for r in f.ranks):
        assert all(k % multiple == 0 or k == full for k, full in zip(rank, (12, 18), strict=True))


def test_numbers_of_clusters_stay_possible():
    """Colours divide the 18 filters, whatever multiple of them is asked for."""
    (family,) = layer(methods=["monochromatic"], multiple=4).families
    assert {rank for (rank,) in family.ranks} <= {1, 2, 3, 6, 9, 18}
    assert len(family.ranks) > 1


@pytest.mark.parametrize(
    ("spec", "methods", "multiple", "reason"),
    [
        (SPEC.replace(in_channels=18, groups=18), AUTO, 1, "depthwise"),
        (ConvSpec(2, 2, linear=True), AUTO, 1, "svd would not be cheaper at any rank"),
        (ConvSpec(2, 2), AUTO, 1, "channel-svd would not be cheaper at any rank"),
        (SPEC, AUTO, 64, "spatial-svd would not be cheaper at rank 64 or a multiple of it"),
        (SPEC, ["svd"], 1, "takes channel-svd or spatial-svd"),
        (SPEC, ["spatial-svd:K=30"], 1, "spatial-svd would not be cheaper at this rank"),
        (SPEC, ["spatial-svd:K=37"], 1, "rank 37 is above its full rank 36"),
        (SPEC, ["tucker2:K1=13,K2=1"], 1, "rank 13×1 is above its full rank 12×18"),
        (SPEC, ["monochromatic:colours=5"], 1, "18 filters do not make 5 equal groups"),
    ],
)
def test_the_reason_for_keeping_is_the_one_that_matters(spec, methods, multiple, reason):
    found = layer(spec, methods, multiple=multiple)
    assert isinstance(found, Kept)
    assert reason in found.reason
    assert "\n" not in found.reason


def test_a_rank_in_the_method_is_the_only_one():
    (family,) = layer(methods=["channel-svd:K=5"], multiple=4).families
    assert family.ranks == [(5,)]
    assert [c.plan and c.plan.rank for c in layer(methods=["tucker2:K1=4,K2=6"]).candidates()] == [None, (4, 6)]


def test_a_linear_and_a_pointwise_layer_take_one_method_each():
    assert [f.method.name for f in layer(ConvSpec(20, 30, linear=True), size=(1, 1)).families] == ["svd"]
    assert [f.method.name for f in layer(ConvSpec(20, 30)).families] == ["channel-svd"]


@pytest.mark.parametrize("name", ["tucker2", "cp", "bicluster-svd", "monochromatic"])
def test_ranks_of_other_methods_span_the_scale(name):
    method = get_method(name)
    ranks = ranks_of(method, SPEC, 1, every=False)
    assert ranks == sorted(set(ranks))
    assert ranks[-1] == method.full_rank(SPEC)
    assert 3 < len(ranks) <= GRID_RANKS // 2
    assert ranks[0] == method.rank(SPEC, 1 / max(method.full_rank(SPEC)))


@pytest.mark.parametrize("count", [1, 2, 5, GRID_RANKS, 100, 5000])
def test_spread(count):
    found = spread(count)
    assert found == sorted(set(found))
    assert found[0] == 0
    assert found[-1] == count - 1
    assert len(found) <= GRID_RANKS
    if count <= 5:
        assert found == list(range(count))


def test_near_looks_between_the_neighbours():
    family = Family(
        get_method("channel-svd"), [(k,) for k in range(1, 201)], torch.arange(200.0), [0, 10, 20, 150, 199]
    )
    family.near(10)
    assert family.chosen == list(range(0, 21))
    family.near(7)
    assert family.chosen == [6, 7, 8]
    family = Family(family.method, family.ranks, family.errors, [0, 10, 20, 150, 199])
    family.near(150)
    assert {20, 150} <= set(family.chosen)
    assert max(b - a for a, b in zip(family.chosen, family.chosen[1:], strict=False)) <= 180 // GRID_RANKS
    family = Family(family.method, family.ranks, family.errors, [0, 3, 199])
    family.near(199)
    assert family.chosen[0] == 3
    assert family.chosen[-1] == 199


@pytest.mark.parametrize(
    ("channels", "full", "multiple"),
    [(64, (255,), 1), (64, (256,), 16), (63, (256,), 1), (512, (512, 128), 1), (512, (512, 256), 16)],
)
def test_wide_layers_have_ranks_that_processors_like(channels, full, multiple):
    assert usual_multiple(ConvSpec(channels, 512, (3, 3)), full) == multiple
    assert usual_multiple(ConvSpec(2 * channels, 1024, (3, 3), groups=2), full) == multiple


def test_without_a_multiple_wide_layers_take_theirs():
    wide = ConvSpec(96, 96, (3, 3), padding=(1, 1))
    spatial, channel = layer(wide, ["spatial-svd", "channel-svd"], multiple=None).families
    assert [k for (k,) in spatial.ranks] == list(range(16, 144, 16))  # full rank 288; 144 has the layer's MACs
    assert [k for (k,) in channel.ranks] == list(range(1, 87))  # full rank 96; 86.4 has the layer's MACs
