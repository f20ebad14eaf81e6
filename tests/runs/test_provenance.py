"""The provenance of a network that a user holds: copied, pickled, trained and saved with it."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import cnncompress as cc
from cnncompress.network.compressed import compressed, with_provenance
from cnncompress.network.provenance import Provenance, provenance

LAYER = "features.3"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one chain."""
    path, model = tmp_path_factory.mktemp("runs") / "run", cc.load_model("digits_vgg").model
    cc.save(cc.decompose(model, cc.plan(model, torch.zeros(1, 3, 32, 32), rank=4, layers=[LAYER])), path)
    return path


WAYS = {
    "as it is": lambda network: network,
    "copied": copy.deepcopy,
    "pickled": lambda network: pickle.loads(pickle.dumps(network)),
    "in half precision": lambda network: network.half(),
    "within a Compressed": with_provenance,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_loaded_network_is_saved_again(run, tmp_path, way):
    given = WAYS[way](cc.load(run))
    cc.save(given, tmp_path / "again")
    again = cc.load(tmp_path / "again")
    assert again.cnncompress == cc.load(run).cnncompress
    assert list(again.cnncompress.plan.layers) == [LAYER]
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in with_provenance(given).network.state_dict().items())


def test_a_trained_network_is_saved_with_what_it_learned(run, tmp_path):
    network = cc.load(run)
    before = copy.deepcopy(network.state_dict())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network.train()(torch.rand(4, 3, 32, 32)).logsumexp(1).sum().backward()
    optimizer.step()
    cc.save(network.eval(), tmp_path / "trained")
    again = cc.load(tmp_path / "trained")
    assert again.cnncompress == network.cnncompress
    assert all(torch.equal(t, network.state_dict()[n]) for n, t in again.state_dict().items())
    assert not torch.equal(again.get_submodule(LAYER)[0].weight, before[f"{LAYER}.0.weight"])


def test_a_second_compression_adds_to_it(run):
    network = cc.load(run)
    assert network.cnncompress.source.name == "digits_vgg"
    small = cc.decompose(network, cc.plan(network, torch.zeros(1, 3, 32, 32), rank=4, layers=["features.7"]))
    assert list(small.cnncompress.plan.layers) == [LAYER, "features.7"]
    assert list(network.cnncompress.plan.layers) == [LAYER]
    assert small.cnncompress.errors[LAYER] == network.cnncompress.errors[LAYER]


def test_it_is_no_tensor_and_no_module(run):
    network = cc.load(run)
    assert not [name for name in network.state_dict() if "cnncompress" in name]
    assert "cnncompress" not in dict(network.named_children())


def test_another_attribute_of_that_name_is_the_users():
    network = nn.Sequential(nn.Linear(2, 2))
    network.cnncompress = "mine"
    assert provenance(network) is None
    assert with_provenance(network).provenance == Provenance()
    assert network.cnncompress == "mine"


def test_a_compressed_network_keeps_the_provenance_it_was_given():
    """Both ways to hold it tell the same; one that was put together by hand is believed."""
    network, known = nn.Sequential(nn.Linear(2, 2)), Provenance(errors={"0": 0.5})
    by_hand = cc.Compressed(network, known.plan, known)
    assert with_provenance(by_hand).provenance is known
    assert provenance(network) is None
    small = compressed(network, known)
    assert small.provenance is network.cnncompress is known
    with pytest.raises(cc.UsageError, match="a network is expected, not a str"):
        with_provenance("resnet18")
