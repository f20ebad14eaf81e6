"""Every lowering of a chain computes what the chain does."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from cnncompress.chains.lowering import lower, lower_kernels, paddings, regroupings
from cnncompress.chains.modules import FactoredLayer, SplitConv2d
from cnncompress.chains.spec import ConvSpec, Permutation, chain_macs, convolutions
from cnncompress.decompositions import get_method
from cnncompress.network.kinds import spec_of
from cnncompress.network.layers import refuse_module
from cnncompress.network.swap import build_chain
from cnncompress.planning import Kept
from cnncompress.programs.export import export_onnx, export_pt2
from tests.decompositions.helpers import convolutions as any_convolution
from tests.decompositions.helpers import decide, images, randn, randomize

LOWERINGS = ["pad8", "pad16", "split", "dense", "pad8+split", "split+pad16", "pad8+dense", "merge", "dense+merge"]
METHODS = ["spatial-svd", "channel-svd", "tucker2", "cp", "monochromatic", "bicluster-svd", "bicluster-outer", "root"]


def both(layer, decision, lowering, kernels=None):
    """The plain and the lowered chain of a layer with the same kernels."""
    method = get_method(decision.method, **decision.options)
    if kernels is None:
        kernels = method.factorize(layer.weight, spec_of(layer), decision.rank, refine=0)
    lowered = dataclasses.replace(decision, chain=lower(decision.chain, lowering), lowering=lowering)
    low = lower_kernels(decision.chain, kernels, lowering)
    return build_chain(decision, kernels, layer), build_chain(lowered, low, layer)


@given(
    layer=any_convolution(),
    method=st.sampled_from(METHODS),
    rank=st.sampled_from([0.3, 0.7]),
    lowering=st.sampled_from(LOWERINGS),
)
@settings(derandomize=True, deadline=None, max_examples=150, database=None)
def test_the_same_outputs_for_every_geometry(layer, method, rank, lowering):
    decision = decide(layer, method, rank)
    assume(not isinstance(decision, Kept))
    plain, lowered = both(layer, decision, lowering)
    x = images(layer)
    torch.testing.assert_close(lowered(x), plain(x), rtol=1e-9, atol=1e-9)
    assert [spec_of(m) for m in lowered.weighted] == list(convolutions(lowered.chain))


@pytest.mark.parametrize("lowering", ["pad8", "pad16", "pad16+dense", "split", "pad8+merge"])
def test_linear_layers(lowering):
    layer = randomize(nn.Linear(20, 30).double())
    plain, lowered = both(layer, decide(layer, "svd", 5), lowering)
    x = randn(3, 4, 20)
    torch.testing.assert_close(lowered(x), plain(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_chain_with_shuffles_loses_them_where_it_is_dense(dtype):
    layer = randomize(nn.Conv2d(8, 12, 3, padding=1).double())
    decision = decide(layer, "bicluster-svd", 0.5)
    plain, lowered = both(layer, decision, "dense")
    assert sum(isinstance(stage, Permutation) for stage in plain.chain) == 3
    assert [stage.groups for stage in convolutions(plain.chain)] == [2, 4, 2]
    assert [getattr(stage, "groups", "permutation") for stage in lowered.chain] == [1, 1, 1]
    torch.testing.assert_close(lowered.to_dense(), plain.to_dense())
    layer = layer.to(dtype)
    assert {p.dtype for p in both(layer, decision, "dense")[1].parameters()} == {dtype}


def test_widths_and_costs_of_padding_by_hand():
    chain = (ConvSpec(6, 26, (3, 1), groups=2), ConvSpec(26, 10, (1, 3), groups=2, bias=True))
    padded = lower(chain, "pad8")  # 13 channels a group become 16
    assert padded == (ConvSpec(6, 32, (3, 1), groups=2), ConvSpec(32, 10, (1, 3), groups=2, bias=True))
    assert chain_macs(padded, (5, 5)) == 32 * 3 * 3 * (3 * 5) + 10 * 16 * 3 * (3 * 3)
    assert lower(padded, "pad8") == padded
    kernels = lower_kernels(chain, [torch.ones(26, 3, 3, 1), torch.ones(10, 13, 1, 3)], "pad8")
    assert [tuple(k.shape) for k in kernels] == [(32, 3, 3, 1), (10, 16, 1, 3)]
    rows = kernels[0][:, 0, 0, 0].tolist()
    assert rows == ([1.0] * 13 + [0.0] * 3) * 2
    assert kernels[1][0, :, 0, 0].tolist() == [1.0] * 13 + [0.0] * 3


def test_padding_of_a_depthwise_middle_by_hand():
    chain = (ConvSpec(4, 5), ConvSpec(5, 5, (3, 3), padding=(1, 1), groups=5), ConvSpec(5, 7))
    middle = ConvSpec(16, 16, (3, 3), padding=(1, 1), groups=16)
    assert lower(chain, "pad16") == (ConvSpec(4, 16), middle, ConvSpec(16, 7))


@pytest.mark.parametrize(
    "chain",
    [
        (ConvSpec(4, 8),),
        (ConvSpec(4, 4, (3, 3), groups=4), ConvSpec(4, 6)),  # the first width is the input's
        (ConvSpec(4, 3), ConvSpec(3, 6, (3, 3), groups=3), Permutation(6)),
        (ConvSpec(4, 6, groups=2), ConvSpec(6, 6)),
    ],
)
def test_what_cannot_be_padded_stays(chain):
    assert lower(chain, "pad16") == chain
    assert paddings(chain) == []


def test_worthwhile_lowerings():
    spec = ConvSpec(32, 32, (3, 3))
    for width, words in ((13, ["pad8"]), (18, ["pad8", "pad16"]), (24, []), (32, [])):
        assert paddings((ConvSpec(32, width, (3, 1)), ConvSpec(width, 32, (1, 3)))) == words
    assert regroupings(spec, (ConvSpec(32, 16, (3, 1)), ConvSpec(16, 32, (1, 3)))) == []
    grouped = (ConvSpec(32, 8), ConvSpec(8, 32, (3, 3), groups=2))
    assert regroupings(spec, grouped) == ["split", "dense"]
    wide = (ConvSpec(32, 32), ConvSpec(32, 32, (3, 3), groups=2))
    assert regroupings(spec, wide) == ["split"]  # dense, it is the layer itself and a 1×1 more
    depthwise = (ConvSpec(32, 8), ConvSpec(8, 8, (3, 3), groups=8), ConvSpec(8, 32))
    assert regroupings(spec, depthwise) == []
    tucker = (ConvSpec(32, 24), ConvSpec(24, 16, (3, 3)), ConvSpec(16, 32))
    assert regroupings(spec, tucker) == ["merge"]
    assert regroupings(spec, tucker[1:]) == []  # one stage, as the layer is
    clustered = (ConvSpec(32, 16, groups=2), ConvSpec(16, 16, (3, 3), groups=4), ConvSpec(16, 32, groups=2))
    assert regroupings(spec, clustered) == ["split", "dense"]


def test_merged_stages_by_hand():
    """900 and 600 weights become 1,350; 30 and 900 become 1,080; 300 and 1,350 would become 16,200."""
    middle = ConvSpec(5, 20, (3, 3), (2, 2), (1, 1), (2, 2))
    tucker = (ConvSpec(60, 5), middle, ConvSpec(20, 30, bias=True))
    assert lower(tucker, "merge") == (tucker[0], middle.replace(out_channels=30, bias=True))
    pair, kernels = (ConvSpec(6, 5), middle), [randn(5, 6, 1, 1), randn(20, 5, 3, 3, seed=1)]
    assert lower(pair, "merge") == (middle.replace(in_channels=6),)
    (found,) = lower_kernels(pair, kernels, "merge")
    torch.testing.assert_close(found, torch.einsum("mc,fmyx->fcyx", kernels[0][:, :, 0, 0], kernels[1]))


@pytest.mark.parametrize(
    "chain",
    [
        (ConvSpec(6, 6, (3, 1)), ConvSpec(6, 6, (1, 3))),  # none is 1×1
        (ConvSpec(6, 6), ConvSpec(6, 6, (3, 3), groups=2)),
        (ConvSpec(6, 6, groups=6), ConvSpec(6, 6, (3, 3))),
        (ConvSpec(6, 6, stride=(2, 2)), ConvSpec(6, 6, (3, 3))),  # leaves positions out
        (ConvSpec(6, 6, padding=(1, 1)), ConvSpec(6, 6, (3, 3))),  # its zeros are not those of the other
        (ConvSpec(6, 6), Permutation(6), ConvSpec(6, 6, (3, 3))),
        (ConvSpec(60, 6), ConvSpec(6, 60, (3, 3))),  # 3,600 weights in the place of 32,400
    ],
)
def test_what_cannot_be_merged_stays(chain):
    assert lower(chain, "merge") == chain


@pytest.mark.parametrize("lowering", ["pad7", "split+", "Dense", "dense split"])
def test_unknown_lowerings(lowering):
    chain = (ConvSpec(2, 2), ConvSpec(2, 2))
    for attempt in (
        lambda: lower(chain, lowering),
        lambda: lower_kernels(chain, [], lowering),
        lambda: FactoredLayer(chain, lowering),
    ):
        with pytest.raises(ValueError, match="unknown lowering"):
            attempt()


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_split_is_a_convolution_with_the_same_tensors(padding_mode):
    plain = nn.Conv2d(6, 9, 3, 2, 1, groups=3, padding_mode=padding_mode)
    split = SplitConv2d(6, 9, 3, 2, 1, groups=3, padding_mode=padding_mode)
    split.load_state_dict(plain.state_dict())
    for x in (torch.randn(2, 6, 8, 7), torch.randn(6, 8, 7), torch.randn(0, 6, 8, 7)):
        torch.testing.assert_close(split(x), plain(x))
    assert spec_of(split) == spec_of(plain)
    assert refuse_module(split) is None


def test_split_leaves_depthwise_stages_alone():
    chain = (ConvSpec(4, 6), ConvSpec(6, 6, (3, 3), groups=6), ConvSpec(6, 8, groups=2))
    assert [type(m) for m in FactoredLayer(chain, "split")] == [nn.Conv2d, nn.Conv2d, SplitConv2d]


def test_kernels_of_the_lowered_chain_are_taken_too():
    layer = randomize(nn.Conv2d(6, 8, 3).double())
    decision = decide(layer, "spatial-svd", 5)
    plain, lowered = both(layer, decision, "pad8")
    again = build_chain(dataclasses.replace(decision, chain=lowered.chain, lowering="pad8"), lowered.kernels(), layer)
    assert all(torch.equal(a, b) for a, b in zip(again.kernels(), lowered.kernels(), strict=True))
    torch.testing.assert_close(again.to_dense(), plain.to_dense())


def test_bias_goes_through_the_permutation_that_is_left():
    layer = randomize(nn.Conv2d(4, 6, 3, bias=True).double())
    shift = randn(6)
    for lowering in ("", "split", "dense"):
        plain, lowered = both(layer, decide(layer, "monochromatic", 2), lowering)
        expected = plain(images(layer)) + shift[:, None, None]
        lowered.add_to_bias(shift)
        torch.testing.assert_close(lowered(images(layer)), expected)


@pytest.mark.parametrize("lowering", ["split", "dense", "pad8"])
@pytest.mark.parametrize(("exporter", "name"), [(export_onnx, "net.onnx"), (export_pt2, "net.pt2")])
def test_lowered_chains_export(tmp_path, lowering, exporter, name):
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 8, 3, padding=1, groups=2)
    _, lowered = both(layer, decide(layer, "channel-svd", 2), lowering)
    net = nn.Sequential(lowered, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    report = exporter(net.eval(), torch.randn(2, 8, 6, 6), tmp_path / name)
    assert report.relative_difference <= report.tolerance
