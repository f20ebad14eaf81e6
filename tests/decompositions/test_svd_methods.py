"""spatial-svd, channel-svd and svd against independent computations and the papers' figures."""

from __future__ import annotations

import numpy as np
import pytest

from cnncompress.chains.compose import compose
from cnncompress.chains.spec import ConvSpec, chain_macs, convolutions
from cnncompress.decompositions import get_method
from tests.decompositions.helpers import randn


def squared_error(method: str, weight, spec: ConvSpec, rank: int) -> float:
    m = get_method(method)
    dense = compose(m.stages(spec, (rank,)), m.factorize(weight, spec, (rank,)))
    return float((dense - weight.reshape(dense.shape)).square().sum())


@pytest.mark.parametrize("rank", [1, 3, 7, 11])
@pytest.mark.parametrize(("F", "C", "d"), [(5, 4, 3), (12, 3, 5)])
def test_spatial_svd_error_is_the_discarded_spectrum_of_the_authors_matrix(F, C, d, rank):
    weight = randn(F, C, d, d)
    matrix = weight.numpy().transpose(1, 2, 3, 0).reshape(C * d, d * F)
    discarded = np.linalg.svd(matrix, compute_uv=False)[rank:]
    got = squared_error("spatial-svd", weight, ConvSpec(C, F, (d, d)), rank)
    assert got == pytest.approx(float((discarded**2).sum()), rel=1e-9, abs=1e-18)


def test_spatial_svd_is_not_beaten_by_alternating_minimisation():
    """Least squares for the vertical and the horizontal filters in turn, from many starts, straight from the sum."""
    F, C, d, K = 4, 3, 3, 2
    weight = randn(F, C, d, d, seed=5)
    W, random = weight.numpy(), np.random.default_rng(0)
    best = np.inf
    for _ in range(8):
        H = random.standard_normal((F, K, d))
        for _ in range(200):
            design = H.transpose(0, 2, 1).reshape(F * d, K)
            V = np.linalg.lstsq(design, W.transpose(0, 3, 1, 2).reshape(F * d, C * d), rcond=None)[0].reshape(K, C, d)
            design = V.transpose(1, 2, 0).reshape(C * d, K)
            solution = np.linalg.lstsq(design, W.transpose(1, 2, 0, 3).reshape(C * d, F * d), rcond=None)[0]
            H = solution.reshape(K, F, d).transpose(1, 0, 2)
        best = min(best, float(((W - np.einsum("kcy,fkx->fcyx", V, H)) ** 2).sum()))
    ours = squared_error("spatial-svd", weight, ConvSpec(C, F, (d, d)), K)
    assert ours <= best * (1 + 1e-9)
    assert ours == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("rank", [1, 4])
def test_channel_svd_and_svd_errors_are_the_discarded_spectrum(rank):
    weight = randn(6, 4, 3, 3)
    discarded = np.linalg.svd(weight.numpy().reshape(6, 36), compute_uv=False)[rank:]
    got = squared_error("channel-svd", weight, ConvSpec(4, 6, (3, 3)), rank)
    assert got == pytest.approx(float((discarded**2).sum()), rel=1e-9)
    weight = randn(6, 9)
    discarded = np.linalg.svd(weight.numpy(), compute_uv=False)[rank:]
    got = squared_error("svd", weight, ConvSpec(9, 6, linear=True), rank)
    assert got == pytest.approx(float((discarded**2).sum()), rel=1e-9)


@pytest.mark.parametrize(
    ("C", "N", "d", "s", "p", "size", "K"),
    [(3, 96, 11, 4, 4, 220, 8), (16, 32, 3, 1, 1, 20, 5), (8, 24, 5, 2, 2, 16, 6)],
)
def test_spatial_svd_speed_up_is_the_papers(C, N, d, s, p, size, K):
    """d·N·C / (K·(N + s·C)), for an output of exactly 1/s the input."""
    spec = ConvSpec(C, N, (d, d), (s, s), (p, p))
    chain = get_method("spatial-svd").stages(spec, (K,))
    assert spec.output_size((size, size)) == (size // s, size // s)
    speed_up = chain_macs((spec,), (size, size)) / chain_macs(chain, (size, size))
    assert speed_up == pytest.approx(d * N * C / (K * (N + s * C)), rel=1e-12)
    if N == 96:
        assert speed_up == pytest.approx(3.667, abs=5e-4)


def test_tai_vgg16_totals():
    ranks = (5, 24, 48, 48, 64, 128, 160, 192, 192, 256, 320, 320, 320)
    widths = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)
    method, weights, macs, C, K = get_method("spatial-svd"), [0, 0], [0, 0], 3, iter(ranks)
    for block, outputs in enumerate(widths):
        size = (224 >> block, 224 >> block)
        for F in outputs:
            spec = ConvSpec(C, F, (3, 3), padding=(1, 1))
            for i, chain in enumerate(((spec,), method.stages(spec, (next(K),)))):
                weights[i] += sum(s.weights for s in convolutions(chain))
                macs[i] += chain_macs(chain, size)
            C = F
    assert weights == [14_710_464, 5_358_573]
    assert macs == [15_346_630_656, 4_944_393_216]


def test_tai_caffenet_weights():
    """Grouped AlexNet: the paper's K are totals over the groups."""
    convs = (
        (3, 96, 11, 1, 8),
        (96, 256, 5, 2, 40),
        (256, 384, 3, 1, 60),
        (384, 384, 3, 2, 100),
        (384, 256, 3, 2, 200),
    )
    method, total = get_method("spatial-svd"), 0
    for C, F, d, groups, K in convs:
        spec = ConvSpec(C, F, (d, d), groups=groups)
        total += sum(s.weights for s in convolutions(method.stages(spec, (K // groups,))))
    assert total == 466_312
