"""Scaled chains compute what they did, and give channels of even ranges."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from cnncompress.chains.balance import balance, inner, scale_of
from cnncompress.chains.modules import FactoredLayer
from cnncompress.chains.stages import Acdc, Branch, ConvSpec, Parallel, Permutation
from cnncompress.decompositions import get_method
from cnncompress.network.balancing import balance_network
from cnncompress.network.kinds import spec_of
from cnncompress.network.swap import build_chain
from cnncompress.planning import Kept
from tests.decompositions.helpers import convolutions as any_convolution
from tests.decompositions.helpers import decide, images, randn, randomize

METHODS = ["spatial-svd", "channel-svd", "tucker2", "cp", "monochromatic", "bicluster-svd", "bicluster-outer", "root"]


def largest(layer, x):
    """The largest magnitude of every channel that a stage gives, stage by stage, without hooks."""
    found = {}
    for i, module in enumerate(layer):
        x = module(x)
        found[i] = (x if isinstance(module, nn.Linear) else x.movedim(1, -1)).flatten(0, -2).abs().amax(0)
    return found


def check(layer, x):
    """Balanced on `x`, a layer gives the same, and all channels before a stage that is scaled have one range."""
    before, expected = largest(layer, x), layer(x)
    balance_network(layer, x.split(1))
    torch.testing.assert_close(layer(x), expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
    after = largest(layer, x)
    for i, _ in inner(layer.chain):
        alive = before[i] > 1e-6 * before[i].max()
        mean = before[i][alive].log().mean().exp()  # the size of a tensor as a whole stays
        torch.testing.assert_close(after[i][alive], mean.expand(int(alive.sum())), rtol=1e-9, atol=0.0)


@given(layer=any_convolution(), method=st.sampled_from(METHODS), rank=st.sampled_from([0.3, 0.7]))
@settings(derandomize=True, deadline=None, max_examples=120, database=None)
def test_every_geometry_and_method(layer, method, rank):
    decision = decide(layer, method, rank)
    assume(not isinstance(decision, Kept))
    kernels = get_method(decision.method, **decision.options).factorize(
        layer.weight, spec_of(layer), decision.rank, refine=0
    )
    with torch.no_grad():
        check(build_chain(decision, kernels, layer), images(layer))


PARTS = (Branch(4, (1, 3), (1, 0)), Branch(2, (3, 1), (0, 1)))
CHAINS = {
    "a bias and a stride inside": (
        ConvSpec(4, 6, (3, 1), (2, 1), (1, 0), bias=True),
        ConvSpec(6, 5, (1, 3), bias=True),
    ),
    "groups on both sides": (ConvSpec(4, 6, groups=2), ConvSpec(6, 9, (3, 3), groups=3, bias=True)),
    "depthwise": (ConvSpec(4, 6), ConvSpec(6, 6, (3, 3), groups=6), ConvSpec(6, 5)),
    "two permutations": (ConvSpec(4, 6, (3, 3)), Permutation(6), Permutation(6), ConvSpec(6, 9, groups=3)),
    "branches": (Parallel(ConvSpec(4, 6, (3, 3), padding=(1, 1), bias=True), PARTS), ConvSpec(6, 5, (1, 1))),
    "linear": (ConvSpec(4, 6, linear=True), Permutation(6, linear=True), ConvSpec(6, 5, bias=True, linear=True)),
}


def filled(chain, dtype=torch.float64, lowering=""):
    """A layer with numbers of different sizes in all its tensors, but for indices."""
    layer = randomize(FactoredLayer(chain, lowering, dtype=dtype))
    for i, (stage, module) in enumerate(zip(chain, layer, strict=True)):
        if stage.reorders:
            stage.write_kernel(module, torch.randperm(stage.channels, generator=torch.Generator().manual_seed(i)))
    return layer


@pytest.mark.parametrize("lowering", ["", "split"])
@pytest.mark.parametrize("name", CHAINS)
def test_stages_of_every_kind(name, lowering):
    chain = CHAINS[name]
    with torch.no_grad():
        check(filled(chain, lowering=lowering), randn(3, 7, 4) if chain[0].linear else randn(3, 4, 8, 9))


def test_single_precision_and_a_channel_of_zeros():
    layer = filled(CHAINS["depthwise"], torch.float32)
    x = randn(2, 4, 8, 9).float()
    with torch.no_grad():
        layer[0].weight[2] = 0
        expected = layer(x)
        balance_network(layer, [x])
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
        assert largest(layer, x)[0][2] == 0


def test_a_stage_with_a_structure_of_its_own_stays():
    chain = (ConvSpec(4, 4, (3, 3), groups=4), Acdc(ConvSpec(4, 6, bias=True), 2))
    layer = FactoredLayer(chain)
    before = copy.deepcopy(layer.state_dict())
    assert inner(chain) == []
    balance(layer, {0: torch.tensor([1.0, 2, 3, 4])})
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_scales_are_ranges_over_their_geometric_mean():
    torch.testing.assert_close(scale_of(torch.tensor([8.0, 2.0, 0.0])), torch.tensor([2.0, 0.5, 1.0]).double())
    assert scale_of(torch.zeros(2)).tolist() == [1, 1]
