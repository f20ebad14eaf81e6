"""Ranks, options, groups, composition."""

from __future__ import annotations

import pytest
import torch

from cnncompress.chains.compose import compose, dense_kernel, extract_groups
from cnncompress.chains.spec import ConvSpec, Permutation
from cnncompress.decompositions import REGISTRY, get_method
from cnncompress.decompositions.options import parse_options
from cnncompress.errors import UnsupportedLayerError, UsageError
from tests.decompositions.helpers import randn

CONV = ConvSpec(6, 8, (3, 3))


@pytest.mark.parametrize(
    ("method", "spec", "full"),
    [
        ("spatial-svd", CONV, (18,)),  # min(6·3, 8·3)
        ("spatial-svd", ConvSpec(6, 8, (5, 2)), (16,)),  # min(6·5, 8·2)
        ("channel-svd", CONV, (8,)),  # min(8, 54)
        ("channel-svd", ConvSpec(2, 64, (3, 3)), (18,)),
        ("svd", ConvSpec(20, 7, linear=True), (7,)),
        ("tucker2", CONV, (6, 8)),
        ("tucker2", ConvSpec(1, 20, (3, 3)), (1, 9)),
        ("tucker2", ConvSpec(20, 1, (3, 3)), (9, 1)),
        ("cp", CONV, (48,)),  # min(54, 72, 48)
        ("cp", ConvSpec(6, 8, (1, 3)), (18,)),
        ("cp", ConvSpec(12, 16, (3, 3), groups=2), (48,)),
    ],
)
def test_full_rank(method, spec, full):
    assert get_method(method).full_rank(spec) == full


@pytest.mark.parametrize(
    ("request_", "rank"),
    [
        (1, (1, 1)),
        (7, (6, 7)),
        (8, (6, 8)),
        (9, (9, 9)),
        (0.5, (3, 4)),
        (1.0, (6, 8)),
        (1e-9, (1, 1)),
        ((2, 5), (2, 5)),
    ],
)
def test_rank_request(request_, rank):
    assert get_method("tucker2").rank(CONV, request_) == rank


@pytest.mark.parametrize("bad", [0, -1, 0.0, -0.5, 1.5, float("nan"), float("inf"), (1,), (1, 2, 3), (0, 1)])
def test_rank_request_out_of_range(bad):
    with pytest.raises(UsageError) as raised:
        get_method("tucker2").rank(CONV, bad)
    assert "\n" not in str(raised.value)


def test_unknown_method_names_the_nearest():
    with pytest.raises(UsageError, match=r"unknown method 'spatial_svd'.*did you mean 'spatial-svd'"):
        get_method("spatial_svd")


def test_parse_options():
    tucker, cp = REGISTRY["tucker2"], REGISTRY["cp"]
    assert parse_options(tucker, "") == ({}, {})
    assert parse_options(tucker, "algorithm=hooi,sweeps=3,K1=4,K2=5") == (
        {"algorithm": "hooi", "sweeps": 3},
        {"K1": 4, "K2": 5},
    )
    assert parse_options(cp, "K=7") == ({}, {"K": 7})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("iteration=3", "did you mean 'iterations'"),
        ("iterations=many", "takes a whole number, not 'many'"),
        ("iterations", "takes a whole number"),
        ("iterations=1.5", "takes a whole number"),
        ("K=0", "at least 1"),
    ],
)
def test_parse_options_refuses(text, message):
    with pytest.raises(UsageError, match=message):
        parse_options(REGISTRY["cp"], text)


def test_depthwise_is_refused_by_every_method():
    spec = ConvSpec(8, 16, (3, 3), groups=8)
    assert all("depthwise" in get_method(m).refuse(spec) for m in REGISTRY)


def test_dense_kernel_of_groups_and_back():
    kernel = randn(6, 2, 3, 3)
    dense = dense_kernel(kernel, 3)
    assert dense.shape == (6, 6, 3, 3)
    for f in range(6):
        for c in range(6):
            expected = kernel[f, c % 2] if f // 2 == c // 2 else torch.zeros(3, 3)
            assert torch.equal(dense[f, c], expected.to(dense))
    assert torch.equal(extract_groups(dense, 3), kernel)


def test_compose_with_permutations():
    """Channels reordered before and after a 1×1: rows and columns of its matrix."""
    W, first, last = randn(4, 3, 1, 1), torch.tensor([2, 0, 1]), torch.tensor([1, 3, 0, 2])
    chain = (Permutation(3), ConvSpec(3, 4), Permutation(4))
    dense = compose(chain, [first, W, last])[:, :, 0, 0]
    x = randn(3)
    torch.testing.assert_close(dense @ x, (W[:, :, 0, 0] @ x[first])[last])


def test_compose_refuses_what_no_kernel_of_this_size_does():
    with pytest.raises(UnsupportedLayerError, match="same axis"):
        compose((ConvSpec(2, 2, (3, 1)), ConvSpec(2, 2, (3, 1))), [randn(2, 2, 3, 1), randn(2, 2, 3, 1)])
    with pytest.raises(UnsupportedLayerError, match="empty chain"):
        compose((), [])


def test_spectrum_tells_the_error_at_each_rank():
    weight, spec = randn(8, 3, 3, 3), ConvSpec(6, 8, (3, 3), groups=2)
    method = get_method("spatial-svd")
    values = method.spectrum(weight, spec)
    assert values.shape == (2, 9)
    chain = method.stages(spec, (4,))
    dense = extract_groups(compose(chain, method.factorize(weight, spec, (4,))), 2)
    assert float((dense - weight).square().sum()) == pytest.approx(float(values[:, 4:].square().sum()), rel=1e-9)
    assert get_method("cp").spectrum(weight, spec) is None


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_counts_and_seeds_out_of_range_are_refused(name):
    for option in REGISTRY[name].counts:
        with pytest.raises(UsageError, match=f"option {option} of method {name} is at least 1, not 0"):
            get_method(name, **{option: 0})
    if "seed" in REGISTRY[name].options:
        for seed in (-1, 2**63):
            with pytest.raises(UsageError, match=f"option seed of method {name} is in 0"):
                get_method(name, seed=seed)
        get_method(name, seed=2**63 - 1)
