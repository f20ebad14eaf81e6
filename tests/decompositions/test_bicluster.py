"""Biclustering: costs, ranks, planted clusters, exactness at full rank."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cnncompress.chains.compose import compose
from cnncompress.chains.spec import ConvSpec, Permutation, chain_macs, chain_params, convolutions
from cnncompress.decompositions import get_method
from cnncompress.decompositions.bicluster import rank_one
from cnncompress.errors import UsageError
from tests.decompositions.helpers import decide, factored, generator, images, randn, randomize, relative
from tests.orders import never_rises

METHODS = ["bicluster-svd", "bicluster-outer"]
CONV2 = ConvSpec(96, 256, (5, 5), stride=(2, 2))


def spec_for(weight: torch.Tensor) -> ConvSpec:
    F, C, kh, kw = weight.shape
    return ConvSpec(C, F, (kh, kw))


def fit(name: str, weight: torch.Tensor, request, **options):
    method, spec = get_method(name, **options), spec_for(weight)
    rank = method.rank(spec, request)
    chain, kernels = method.stages(spec, rank), method.factorize(weight, spec, rank)
    return compose(chain, kernels), chain, kernels


@pytest.mark.parametrize(
    ("C", "F", "kernel", "G", "H", "K1", "K2"),
    [
        (96, 256, (5, 5), 2, 2, 19, 24),
        (12, 18, (3, 5), 3, 2, 4, 7),
        (8, 10, (1, 3), 8, 5, 1, 2),
        (9, 4, (3, 3), 1, 1, 5, 3),
    ],
)
def test_costs_are_those_of_the_paper(C, F, kernel, G, H, K1, K2):
    """Table 1, with stride 2: the first 1×1 at every input position, the rest at every output position."""
    spec, P = ConvSpec(C, F, kernel, stride=(2, 2)), kernel[0] * kernel[1]
    inputs, outputs = 20 * 22, ((20 - kernel[0]) // 2 + 1) * ((22 - kernel[1]) // 2 + 1)
    chain = get_method("bicluster-svd", G=G, H=H).stages(spec, (G, H, K1, K2))
    assert chain_params(chain) == G * H * (C // G * K1 + K1 * P * K2 + K2 * F // H)
    assert chain_macs(chain, (20, 22)) == G * H * (C // G * K1 * inputs + (K1 * P * K2 + K2 * F // H) * outputs)
    chain = get_method("bicluster-outer", G=G, H=H).stages(spec, (G, H, K1))
    assert chain_params(chain) == G * H * K1 * (C // G + P + F // H)
    assert chain_macs(chain, (20, 22)) == G * H * K1 * (C // G * inputs + (P + F // H) * outputs)


@pytest.mark.parametrize(
    ("name", "rank", "ratio"),
    [
        ("bicluster-svd", (2, 2, 19, 24), 9.98),
        ("bicluster-svd", (2, 2, 19, 64), 3.89),
        ("bicluster-outer", (48, 2, 6), 6.88),
    ],
)
def test_reduction_of_the_second_layer_of_the_paper(name, rank, ratio):
    method = get_method(name, G=rank[0], H=rank[1])
    assert method.rank(CONV2, rank[2:]) == rank
    assert round(CONV2.params / chain_params(method.stages(CONV2, rank)), 2) == ratio


def test_ranks_of_a_request():
    svd, outer = get_method("bicluster-svd"), get_method("bicluster-outer", G=48)
    assert svd.full_rank(CONV2) == (2, 2, 48, 128)
    assert svd.rank(CONV2, 0.25) == (2, 2, 12, 32)
    assert svd.rank(CONV2, 19) == (2, 2, 19, 19)
    assert svd.rank(CONV2, 100) == (2, 2, 48, 100)
    assert svd.rank(CONV2, (19, 24)) == svd.rank(CONV2, (2, 2, 19, 24)) == (2, 2, 19, 24)
    assert outer.full_rank(CONV2) == (48, 2, min(2 * 25, 128 * 25, 2 * 128))
    assert outer.rank(CONV2, 6) == (48, 2, 6)
    for wrong in [(19,), (4, 2, 19, 24), (2, 2, 19)]:
        with pytest.raises(UsageError, match=r"\(K1, K2\), after G=2, H=2 or alone"):
            svd.rank(CONV2, wrong)
    with pytest.raises(UsageError, match="not positive"):
        svd.rank(CONV2, (0, 3))


def test_the_nearest_divisor_is_taken_and_shows_in_the_rank():
    assert get_method("bicluster-svd", G=5, H=7).rank(CONV2, 8) == (6, 8, 8, 8)
    assert get_method("bicluster-svd").rank(ConvSpec(3, 9, (3, 3)), 0.5)[:2] == (3, 3)
    reason = get_method("bicluster-svd").refuse(ConvSpec(7, 8, (3, 3)))
    assert reason == "7 input channels make no equal clusters, G=2 or near it; give G=1 for none"
    assert "5 filters make no equal clusters, H=2" in get_method("bicluster-svd").refuse(ConvSpec(6, 5, (3, 3)))
    assert get_method("bicluster-svd", G=1).refuse(ConvSpec(7, 8, (3, 3))) is None


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Linear(4, 4), "Linear"),
        (nn.Conv2d(4, 4, 1), "1×1"),
        (nn.Conv2d(4, 8, 3, groups=2), "grouped"),
        (nn.Conv2d(4, 8, 3, groups=4), "depthwise"),
    ],
)
def test_refusals(name, layer, reason):
    assert reason in decide(layer, name).reason


def test_options_of_the_command_line():
    layer = nn.Conv2d(96, 256, 5)
    assert decide(layer, "bicluster-outer:G=48,H=2,K=6").rank == (48, 2, 6)
    assert decide(layer, "bicluster-svd:G=4,K1=5,K2=6").rank == (4, 2, 5, 6)
    assert decide(layer, "bicluster-svd:H=4", 0.25).rank == (2, 4, 12, 16)
    assert "above its full rank" in decide(layer, "bicluster-svd:K1=49,K2=1").reason
    for wrong, message in [("G=0", "G of"), ("H=-1", "H of"), ("restarts=0", "restarts"), ("seed=-1", "seed")]:
        with pytest.raises(UsageError, match=message):
            decide(layer, f"bicluster-svd:{wrong}")


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("G", "H", "channels"),
    [(2, 2, [8, None, 12]), (1, 2, [12]), (2, 1, [8]), (1, 1, []), (8, 12, [None]), (8, 3, [None, 12])],
)
def test_only_the_permutations_that_are_needed(name, G, H, channels):
    method, spec = get_method(name, G=G, H=H), ConvSpec(8, 12, (3, 3), bias=True)
    rank = method.rank(spec, 1)
    chain = method.stages(spec, rank)
    found = [s.channels for s in chain if isinstance(s, Permutation)]
    assert found == [G * H * rank[-1] if c is None else c for c in channels]
    assert [s.bias for s in convolutions(chain)] == [False, False, True]
    kernels = method.factorize(randn(12, 8, 3, 3), spec, rank)
    for stage, kernel in zip(chain, kernels, strict=True):
        if isinstance(stage, Permutation):
            assert torch.equal(kernel.sort().values, torch.arange(stage.channels))
        else:
            assert kernel.shape == stage.weight_shape


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("G", "H"), [(1, 1), (2, 3), (6, 2), (3, 8)])
def test_full_rank_is_exact(name, G, H):
    weight = randn(8, 6, 3, 2)
    assert relative(fit(name, weight, 1.0, G=G, H=H)[0], weight) < 1e-12


@pytest.mark.parametrize("name", METHODS)
def test_the_error_does_not_rise_with_the_rank(name):
    weight = randn(8, 6, 3, 3)
    full = get_method(name).full_rank(spec_for(weight))
    errors = [relative(fit(name, weight, k)[0], weight) for k in range(1, max(full) + 1)]
    assert errors[0] < 1
    assert never_rises(errors)
    assert errors[-1] < 1e-12


def clusters_of(index: torch.Tensor, k: int, inverse: bool) -> torch.Tensor:
    """The cluster of each channel from the permutation that sorts them, or (`inverse`) brings them back."""
    place = index if inverse else torch.argsort(index)
    return place // (len(index) // k)


@pytest.mark.parametrize(
    ("name", "C", "F", "G", "H", "rank"),
    [
        ("bicluster-svd", 16, 24, 2, 2, (2, 2)),
        ("bicluster-svd", 18, 20, 3, 2, (1, 2)),
        ("bicluster-outer", 16, 24, 2, 2, (2,)),
        ("bicluster-outer", 16, 20, 4, 2, (1,)),
    ],
)
def test_planted_clusters_are_found(name, C, F, G, H, rank):
    """Random parts of low rank, channels and filters shuffled; the outer products of a part are orthogonal."""
    K1, K2, parts = rank[0], rank[-1], []
    for i in range(G * H):
        A, B, D = (torch.linalg.qr(randn(n, K, seed=4 * i + n))[0] for n, K in [(F // H, K2), (C // G, K1), (9, K1)])
        core = randn(K2, K1, 9, seed=4 * i)
        if name == "bicluster-outer":
            core = torch.diag_embed(D * torch.arange(K1, 0, -1)).movedim(0, -1)
        parts.append(torch.einsum("fm,mkp,ck->fcp", A, core, B))
    rows = [torch.cat(parts[h * G : (h + 1) * G], dim=1) for h in range(H)]
    to_channel = torch.randperm(C, generator=generator(1))
    to_filter = torch.randperm(F, generator=generator(2))
    weight = torch.cat(rows).unflatten(2, (3, 3))[to_filter][:, to_channel]
    found, _, kernels = fit(name, weight, rank, G=G, H=H)
    assert relative(found, weight) < 1e-6
    channels, filters = clusters_of(kernels[0], G, inverse=False), clusters_of(kernels[-1], H, inverse=True)
    expected_channels, expected_filters = to_channel // (C // G), to_filter // (F // H)
    assert torch.equal(channels[:, None] == channels, expected_channels[:, None] == expected_channels)
    assert torch.equal(filters[:, None] == filters, expected_filters[:, None] == expected_filters)


def test_without_clusters_it_is_the_tucker_decomposition():
    weight = randn(8, 6, 3, 3)
    found = fit("bicluster-svd", weight, (3, 4), G=1, H=1)[0]
    tucker, spec = get_method("tucker2"), spec_for(weight)
    torch.testing.assert_close(found, compose(tucker.stages(spec, (3, 4)), tucker.factorize(weight, spec, (3, 4))))


@pytest.mark.parametrize("shape", [(7, 5, 9), (5, 7, 9), (4, 4, 1)])
def test_rank_one_fits_are_stationary_and_exact_where_they_can_be(shape):
    exact = torch.einsum("nf,nc,np->nfcp", *(randn(3, m, seed=m + i) for i, m in enumerate(shape)))
    noisy = exact + 0.1 * randn(3, *shape)
    for tensors, tolerance in [(exact, 1e-9), (noisy, 1.0)]:
        a, b, d, scale = rank_one(tensors)
        fitted = torch.einsum("n,nf,nc,np->nfcp", scale, a, b, d)
        assert relative(fitted, tensors) < tolerance
        for vector in (a, b, d):
            torch.testing.assert_close(torch.linalg.vector_norm(vector, dim=1), torch.ones(3, dtype=torch.float64))
        # the scale is the projection on the product: the error is at a right angle to it
        torch.testing.assert_close(torch.einsum("nfcp,nf,nc,np->n", tensors, a, b, d), scale)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("mode", ["zeros", "replicate"])
def test_the_layer_of_the_chain_computes_its_kernel(name, mode):
    layer = nn.Conv2d(6, 8, 3, stride=2, padding=(2, 1), dilation=2, padding_mode=mode, bias=False).double()
    chain = factored(randomize(layer), decide(layer, name, 2))
    x = images(layer)
    with torch.no_grad():
        got = chain(x)
        layer.weight.copy_(chain.to_dense())
        torch.testing.assert_close(got, layer(x))


@pytest.mark.parametrize("name", METHODS)
def test_a_zero_weight_stays_zero(name):
    found = fit(name, torch.zeros(6, 4, 3, 3), 2)[0]
    assert torch.equal(found, torch.zeros_like(found))
