"""The weights of a run beside its original's."""

import pytest
import torch
from torch import nn

import cnncompress as cc
from cnncompress.pipeline.opened import open_run
from cnncompress.pipeline.original import original_network
from cnncompress.pipeline.pictures import POINTS, filters_of, pictures_of, share_of_a_line, spectra_of


def planned(network, example, method, rank):
    """The plan of a network whose layers all get one method and rank."""
    return cc.plan(network, example, method=method, rank=rank)


def test_a_spectrum_is_that_of_the_matrix_that_is_truncated():
    layer = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.diag(torch.tensor([3.0, 4.0, 0.0, 0.0])))
    plan = planned(nn.Sequential(layer), torch.randn(1, 4), "svd", 1)
    (found,) = spectra_of({"0": layer.weight.detach()}, plan.layers)
    assert (found.layer, found.rank, found.full) == ("0", 1, 4)
    assert [i for i, _ in found.values] == [1, 2, 3, 4]
    assert [value for _, value in found.values] == pytest.approx([1, 0.75, 0, 0], abs=1e-6)
    assert found.energy == pytest.approx(16 / 25)


def test_a_long_spectrum_has_few_points_with_both_ends():
    layer = nn.Linear(200, 300)
    plan = planned(nn.Sequential(layer), torch.randn(1, 200), "svd", 10)
    (found,) = spectra_of({"0": layer.weight.detach()}, plan.layers)
    expected = torch.linalg.svdvals(layer.weight.detach().double())
    assert len(found.values) == POINTS
    assert (found.values[0], found.values[-1][0]) == ((1, 1.0), 200)
    assert found.values[-1][1] == pytest.approx(float(expected[-1] / expected[0]), rel=1e-3)
    assert found.energy == pytest.approx(float(expected[:10].square().sum() / expected.square().sum()), rel=1e-4)


@pytest.mark.parametrize(
    ("colours", "share"),
    [
        ([[1.0, 2.0, -3.0]] * 2, 1.0),  # all on a line
        (torch.eye(3).tolist(), 1 / 3),  # along every axis alike
        ([[0.0, 0.0, 0.0]], 0.0),  # nothing at all
    ],
)
def test_the_share_of_a_line_in_the_space_of_colours(colours, share):
    kernels = torch.tensor(colours).T.reshape(1, 3, 1, -1)
    assert share_of_a_line(kernels) == pytest.approx(share)


def test_the_first_layer_is_shown_as_its_chain_computes_it():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    weights = {name: network[int(name)].weight.detach() for name in "02"}
    plan = planned(network, torch.randn(1, 3, 8, 8), "monochromatic", 4)
    small = cc.decompose(network, plan)
    found = filters_of(weights, small, 3)
    now = torch.tensor(found.now)
    assert found.layer == "0"
    assert torch.equal(torch.tensor(found.before), weights["0"])
    assert found.lines[1] == pytest.approx(1.0)  # one colour a filter is what the method leaves (Denton, section 3.3)
    assert found.lines[0] < 0.99
    x = torch.randn(1, 3, 8, 8)
    bias = small[0](torch.zeros_like(x))
    assert torch.allclose(nn.functional.conv2d(x, now), small[0](x) - bias, atol=1e-5)


@pytest.mark.parametrize("channels", [2, 4])
def test_other_channels_than_colours_have_no_picture(channels):
    network = nn.Sequential(nn.Conv2d(channels, 8, 3))
    assert filters_of({"0": network[0].weight.detach()}, network, channels) is None


def test_a_run_without_its_original_says_so(tmp_path):
    network = cc.load_model("digits_vgg").model  # saved from Python: nothing records which weights it was made of
    plan = planned(network, torch.zeros(1, 3, 32, 32), "spatial-svd", 4)
    cc.save(cc.decompose(network, plan), tmp_path / "run")
    opened = open_run(tmp_path / "run")
    assert "the original's weights are not at hand" in pictures_of(opened, original_network(opened)).missing
