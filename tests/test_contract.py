"""What every registered decomposition must keep, over all geometries of a layer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cnncompress.chains.compose import compose, extract_groups
from cnncompress.chains.plan_json import plan_from_json, plan_to_json
from cnncompress.chains.spec import Call, ConvSpec, Permutation, chain_macs, chain_params
from cnncompress.decompositions import REGISTRY, get_method
from cnncompress.metrics import FROBENIUS, layer_metrics, relative_error
from cnncompress.network.copying import clone
from cnncompress.network.kinds import spec_of
from cnncompress.network.swap import apply_plan
from cnncompress.planning import Kept
from tests.decompositions import helpers
from tests.decompositions.helpers import (
    METRIC_NAMES,
    SIZE,
    decide,
    factored,
    images,
    made_up_statistics,
    randn,
    randomize,
    relative,
)
from tests.marks import with_slow
from tests.orders import never_rises

METHODS = sorted(REGISTRY)
DESCENT = "acdc:steps=10"  # takes steps toward a local optimum and reaches none that is exact; few are enough here
PRODUCTS = "acdc:taps=diagonals,steps=10"
VARIANTS = [
    *(DESCENT if m == "acdc" else m for m in METHODS),
    "tucker2:algorithm=hooi,sweeps=2",
    "spatial-svd:first=horizontal",
    "root:join=network",
    PRODUCTS,
]
ITERATIVE = ("cp", "monochromatic", "bicluster-outer", DESCENT, PRODUCTS)  # fitted in many steps
EXACT = [v for v in VARIANTS if REGISTRY[v.split(":")[0]].exact]
few = settings(derandomize=True, deadline=None, max_examples=30, database=None)
# alternating least squares stops in local optima: a higher rank may end a little above a lower one
SLACK = {"cp": 0.02}

LAYERS = {
    "3x3": lambda: nn.Conv2d(6, 8, 3, padding=1),
    "5x3 strided": lambda: nn.Conv2d(5, 7, (5, 3), stride=(2, 1), padding=(2, 1), bias=False),
    "grouped": lambda: nn.Conv2d(8, 12, 3, groups=2),
    "1x1": lambda: nn.Conv2d(9, 7, 1, stride=2),
    "linear": lambda: nn.Linear(11, 8),
}


def taken(method: str, rank=1.0) -> dict[str, tuple[nn.Conv2d | nn.Linear, object]]:
    """The layers of `LAYERS` that a method takes, with their plans."""
    layers = {name: randomize(make().double(), 3) for name, make in LAYERS.items()}
    plans = {name: decide(layer, method, rank) for name, layer in layers.items()}
    return {name: (layers[name], p) for name, p in plans.items() if not isinstance(p, Kept)}


def inputs(layer: nn.Conv2d | nn.Linear) -> torch.Tensor:
    if isinstance(layer, nn.Linear):
        return randn(4, layer.in_features, seed=7, dtype=layer.weight.dtype)
    return images(layer)


@pytest.mark.parametrize("method", EXACT)
@given(layer=helpers.convolutions((torch.float64, torch.float64, torch.float32)))
@few
def test_full_rank_reproduces_the_layer_or_refuses_in_a_sentence(method, layer):
    decision = decide(layer, method)
    if isinstance(decision, Kept):
        assert len(decision.reason.split()) >= 3
        assert "\n" not in decision.reason
        return
    x = images(layer)
    with torch.no_grad():
        got, expected = factored(layer, decision)(x), layer(x)
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    scale = max(1.0, float(expected.abs().max()))
    assert float((got - expected).abs().max()) < (1e-10 if x.dtype == torch.float64 else 2e-5) * scale


@pytest.mark.parametrize("method", EXACT)
def test_every_method_takes_a_common_layer_exactly(method):
    layers = taken(method)
    assert layers
    for layer, decision in layers.values():
        x = inputs(layer)
        torch.testing.assert_close(factored(layer, decision)(x), layer(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", EXACT)
def test_bfloat16_is_kept_and_coarsely_exact(method):
    for layer, decision in taken(method).values():
        layer.to(torch.bfloat16)
        x = inputs(layer)
        got, expected = factored(layer, decision)(x), layer(x)
        assert got.dtype == torch.bfloat16
        assert relative(got, expected) < 0.05


@pytest.mark.parametrize("shape", [(11,), (3, 11), (2, 3, 4, 11)])
def test_linear_on_any_leading_shape(shape):
    layer = randomize(nn.Linear(11, 8).double())
    x = randn(*shape)
    torch.testing.assert_close(factored(layer, decide(layer, "svd"))(x), layer(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("metric", METRIC_NAMES)
@pytest.mark.parametrize("method", with_slow([v for v in VARIANTS if v not in (DESCENT, PRODUCTS)], ITERATIVE))
@pytest.mark.parametrize("seed", range(3))
def test_planted_structure_is_recovered(method, seed, metric):
    """Random kernels in the method's own chain of low rank: the fit finds a chain with the same kernel.

    Permutations are those of a fit, as only they sort channels into clusters. Greedy deflation takes outer products
    that are not orthogonal apart exactly only where a part is a single one.
    """
    layers = taken(method, rank=1 if method == "bicluster-outer" else 2)
    assert layers
    for layer, decision in layers.values():
        spec = spec_of(layer)
        metrics = layer_metrics(metric, spec, made_up_statistics(spec))
        fit = get_method(decision.method, **decision.options).factorize
        example = fit(randn(*spec.weight_shape, seed=9 + seed), spec, decision.rank)
        kernels = [
            k if isinstance(s, Permutation) else randn(*s.weight_shape, seed=seed + i)
            for i, (s, k) in enumerate(zip(decision.chain, example, strict=True))
        ]
        planted = compose(decision.chain, kernels)
        found = fit(extract_groups(planted, spec.groups), spec, decision.rank, metrics)
        assert relative(compose(decision.chain, found), planted) < 1e-6


@pytest.mark.parametrize("metric", METRIC_NAMES)
@pytest.mark.parametrize("method", with_slow(VARIANTS, ITERATIVE))
def test_refinement_lowers_the_error_in_every_metric(method, metric):
    for layer, decision in taken(method, 0.4).values():
        spec, weight = spec_of(layer), layer.weight.detach().reshape(spec_of(layer).weight_shape)
        metrics = layer_metrics(metric, spec, made_up_statistics(spec))
        fit, errors = get_method(decision.method, **decision.options).factorize, []
        plain = extract_groups(compose(decision.chain, fit(weight, spec, decision.rank, refine=0)), spec.groups)
        for sweeps in (0, 1, 3):
            kernels = fit(weight, spec, decision.rank, metrics, refine=sweeps)
            assert all(torch.isfinite(k).all() for k in kernels)
            dense = extract_groups(compose(decision.chain, kernels), spec.groups)
            errors.append(relative_error(metrics, weight, dense))
        assert never_rises([1, *errors]), (spec, errors)
        assert errors[1] <= relative_error(metrics, weight, plain) + 1e-9


@pytest.mark.parametrize("metric", METRIC_NAMES)
@pytest.mark.parametrize("method", EXACT)
def test_full_rank_is_exact_in_every_metric(method, metric):
    for layer, decision in taken(method).values():
        spec, weight = spec_of(layer), layer.weight.detach().reshape(spec_of(layer).weight_shape)
        metrics = layer_metrics(metric, spec, made_up_statistics(spec))
        kernels = get_method(decision.method, **decision.options).factorize(weight, spec, decision.rank, metrics)
        assert relative(extract_groups(compose(decision.chain, kernels), spec.groups), weight) < 1e-9


@pytest.mark.parametrize("method", with_slow(VARIANTS, ITERATIVE))
@given(layer=helpers.convolutions())
@settings(few, max_examples=12)
def test_error_does_not_rise_with_the_rank_and_is_never_above_one(method, layer):
    fractions, errors = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0), []
    spec = spec_of(layer)
    for fraction in fractions:
        decision = decide(layer, method, fraction)
        if isinstance(decision, Kept):
            return
        dense = extract_groups(factored(layer, decision).to_dense(), spec.groups)
        errors.append(relative_error([FROBENIUS] * spec.groups, layer.weight.detach(), dense))
    slack = SLACK.get(method, 1e-9)
    assert never_rises([1, *errors], slack), errors
    assert max(errors) <= 1 + 1e-9
    assert errors[-1] < 1e-7 or not get_method(decision.method).exact


@pytest.mark.parametrize("method", with_slow(VARIANTS, (PRODUCTS,)))
@given(layer=helpers.convolutions(), fraction=st.sampled_from([0.1, 0.3, 0.6]))
@few
def test_chain_is_its_composed_kernel_and_costs_what_its_stages_say(method, layer, fraction):
    decision = decide(layer, method, fraction)
    if isinstance(decision, Kept):
        return
    chain, x = factored(layer, decision), images(layer, n=1)
    spec, stages = spec_of(layer), [stage for stage in decision.chain if not stage.reorders]
    assert [s.bias for s in stages] == [False] * (len(stages) - 1) + [spec.bias]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        got = chain(x)
    dense = randomize(nn.Conv2d(**{**conv_arguments(layer), "groups": 1}))
    with torch.no_grad():
        dense.weight.copy_(chain.to_dense())
        if layer.bias is not None:
            dense.bias.copy_(layer.bias)
        torch.testing.assert_close(got, dense(x), rtol=1e-10, atol=1e-9)
    assert chain_params(decision.chain) == sum(p.numel() for p in chain.parameters()) == decision.params[1]
    assert chain_macs(decision.chain, SIZE) * 2 == counter.get_total_flops()
    assert decision.macs == (Call(0, spec, (SIZE,)).macs, chain_macs(decision.chain, SIZE))


def conv_arguments(layer: nn.Conv2d) -> dict:
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return {**{n: getattr(layer, n) for n in names}, "bias": layer.bias is not None, "dtype": layer.weight.dtype}


@pytest.mark.parametrize("method", VARIANTS)
@given(layer=helpers.convolutions(), rank=st.sampled_from([1, 2, 3, 0.1, 0.5, 0.9, 1.0]))
@few
def test_a_chain_is_never_taken_where_it_costs_more(method, layer, rank):
    decision = decide(layer, method, rank, force=False)
    if isinstance(decision, Kept):
        return
    spec = spec_of(layer)
    assert chain_macs(decision.chain, SIZE) < chain_macs((spec,), SIZE)
    assert chain_params(decision.chain) < spec.params


@pytest.mark.parametrize("method", VARIANTS)
@pytest.mark.parametrize("value", ["zero", "one entry"])
def test_degenerate_weights_stay_finite(method, value):
    for layer, decision in taken(method, rank=2).values():
        with torch.no_grad():
            layer.weight.zero_()
            if value == "one entry":
                layer.weight[(0, 0, *(n // 2 for n in layer.weight.shape[2:]))] = 3.0  # in every shape of kernel
        chain = factored(layer, decision)
        assert all(torch.isfinite(p).all() for p in chain.parameters())
        dense = extract_groups(chain.to_dense(), spec_of(layer).groups)
        atol = 3.0 if method in (DESCENT, PRODUCTS) and value == "one entry" else 1e-6
        torch.testing.assert_close(dense, layer.weight.detach().reshape(dense.shape), rtol=0, atol=atol)


STATISTICS = {
    "constant inputs": lambda s: s.moment.zero_(),
    "dead inputs": lambda s: (s.moment[:, ::2].zero_(), s.moment[:, :, ::2].zero_()),
    "one direction": lambda s: s.moment.fill_(1.0),
    "no gradients": lambda s: (s.gradient.zero_(), s.sensitivity.zero_()),
    "dead filters": lambda s: (s.gradient[1:].zero_(), s.gradient[:, 1:].zero_(), s.sensitivity[1:].zero_()),
    "one sensitive weight": lambda s: s.sensitivity.view(-1)[1:].zero_(),
    "tiny": lambda s: (s.moment.mul_(1e-20), s.gradient.mul_(1e-20), s.sensitivity.mul_(1e-20)),
    "huge": lambda s: (s.moment.mul_(1e20), s.gradient.mul_(1e20), s.sensitivity.mul_(1e20)),
    "two rows": None,
}


@pytest.mark.parametrize("case", STATISTICS)
@pytest.mark.parametrize("method", with_slow(VARIANTS, ITERATIVE))
def test_degenerate_statistics_give_finite_kernels_and_errors(method, case):
    for layer, decision in list(taken(method, 2).values())[:1]:  # the statistics matter here, not the geometry
        spec, weight = spec_of(layer), layer.weight.detach().reshape(spec_of(layer).weight_shape).float()
        statistics = made_up_statistics(spec, rows=2 if case == "two rows" else 400)
        if STATISTICS[case] is not None:
            STATISTICS[case](statistics)
        for name in METRIC_NAMES:
            metrics = layer_metrics(name, spec, statistics)
            fit = get_method(decision.method, **decision.options).factorize
            kernels = fit(weight, spec, decision.rank, metrics, refine=2)
            assert all(torch.isfinite(k.float()).all() for k in kernels)
            dense = extract_groups(compose(decision.chain, kernels), spec.groups)
            assert relative_error(metrics, weight, dense) < 1
            zero = fit(torch.zeros_like(weight), spec, decision.rank, metrics)
            assert not compose(decision.chain, zero).any()


@pytest.mark.parametrize("method", VARIANTS)
def test_factorize_is_deterministic(method):
    for layer, decision in taken(method, rank=2).values():
        one, two = factored(layer, decision), factored(layer, decision)
        assert all(torch.equal(a, b) for a, b in zip(one.kernels(), two.kernels(), strict=True))


class Network(nn.Module):
    """A shared layer, a frozen one, a part in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.twice = nn.Conv2d(12, 12, 3, padding="same", padding_mode="reflect")
        self.again = self.twice
        self.frozen = nn.Conv2d(12, 16, 3, stride=2, bias=False).requires_grad_(False)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(16, 10)).eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.again(self.twice(self.stem(x).relu()).relu()).relu()
        return self.head(self.frozen(x).mean((2, 3)))


@pytest.fixture
def network() -> Network:
    return randomize(Network())


def spatial_methods() -> list[str]:
    return [m for m in VARIANTS if get_method(m.split(":")[0]).refuse(ConvSpec(12, 12, (3, 3))) is None]


@pytest.mark.parametrize("method", spatial_methods())
def test_swap_keeps_what_a_layer_was(network, method):
    network.to(memory_format=torch.channels_last)
    x = randn(2, 3, 9, 9, dtype=torch.float32).to(memory_format=torch.channels_last)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    types = [type(m) for m in network.modules()]
    small, plan = helpers.compress(network, x, method=method, rank=0.5, force=True)
    assert {"stem", "twice", "frozen"} <= set(plan.layers)
    assert small.twice is small.again
    assert small.frozen.training
    assert not small.head.training
    assert not any(p.requires_grad for p in small.frozen.parameters())
    assert all(p.requires_grad for p in small.twice.parameters())
    for weight in (p for p in small.twice.parameters() if p.dim() == 4 and p.shape[2] * p.shape[3] > 1):
        assert weight.is_contiguous(memory_format=torch.channels_last)
    assert [type(m) for m in network.modules()] == types
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    storages = {p.data_ptr() for p in network.parameters()}
    assert not storages & {p.data_ptr() for p in small.parameters()}


@pytest.mark.parametrize("method", spatial_methods())
def test_state_dict_and_plan_are_enough_to_rebuild(network, method):
    x = randn(2, 3, 9, 9, dtype=torch.float32)
    small, plan = helpers.compress(network, x, method=method, rank=0.3, force=True)
    rebuilt = apply_plan(clone(network), plan_from_json(plan_to_json(plan)))
    rebuilt.load_state_dict(small.state_dict(), assign=True)
    assert torch.equal(rebuilt(x), small(x))


@pytest.mark.parametrize("method", ["auto", *spatial_methods()])
def test_export_computes_the_same(network, method):
    x = randn(2, 3, 9, 9, dtype=torch.float32)
    small, _ = helpers.compress(network.eval(), x, method=method, rank=0.3, force=True)
    torch.testing.assert_close(torch.export.export(small, (x,)).module()(x), small(x))


def test_full_rank_of_a_whole_network(network):
    x = randn(2, 3, 9, 9)
    network.double()
    small, plan = helpers.compress(network, x, rank=1.0, force=True)
    assert set(plan.layers) == {"stem", "twice", "frozen", "head.1"}
    assert not plan.kept
    torch.testing.assert_close(small(x), network(x), rtol=1e-10, atol=1e-8)
