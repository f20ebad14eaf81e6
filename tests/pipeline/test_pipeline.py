"""The functions behind the commands: opening, inspecting, planning and decomposing any network."""

import pytest
import torch
from torch import nn

from cnncompress.chains.modules import FactoredLayer
from cnncompress.fitting import decompose
from cnncompress.network.layers import layers_of
from cnncompress.network.run import inference
from cnncompress.pipeline.asked import NetworkAsked
from cnncompress.pipeline.inspect import energies_of, inspect_layers, rank_for_energy
from cnncompress.pipeline.opened import open_network
from cnncompress.planning import plan
from tests.network.test_profile import ALL, on_meta  # noqa: F401


def check_network(model, image):
    """Every layer is inspected, and is either decomposed or kept for a reason; the smaller network runs.

    What computes beside the layers, such as attention, is named too and kept.
    """
    rows = inspect_layers(model, image)
    names = {row.layer for row in rows}
    assert [row.layer for row in rows if not (row.methods or row.note)] == []
    assert names >= set(layers_of(model))
    assert all(row.note for row in rows if row.layer not in layers_of(model))
    planned = plan(model, image, rank=0.25)
    assert planned.layers
    assert set(planned.layers) | set(planned.kept) == names
    assert not set(planned.layers) & set(planned.kept)
    assert all(planned.kept.values())
    noted = {row.layer for row in rows if row.note}
    assert noted <= set(planned.kept)
    small = decompose(model, planned, progress=False)
    assert sum(isinstance(m, FactoredLayer) for m in small.modules()) == len(planned.layers)
    assert not any(isinstance(m, FactoredLayer) for m in model.modules())
    with inference(small), torch.no_grad():
        assert small(image).shape == (1, 1000)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "vit_b_32"])
def test_networks(name, on_meta):  # noqa: F811
    check_network(*on_meta(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_every_torchvision_network(name, on_meta):  # noqa: F811
    check_network(*on_meta(name))


def test_attention_and_depthwise_layers_are_kept_with_their_reasons(on_meta):  # noqa: F811
    model, image = on_meta("vit_b_32")
    rows = {row.layer: row for row in inspect_layers(model, image)}
    attention = [row for name, row in rows.items() if name.endswith("self_attention.out_proj")]
    assert len(attention) == 12
    assert all("not called as a layer" in row.note and row.macs == 0 for row in attention)
    model, image = on_meta("mobilenet_v3_small")
    kept = plan(model, image, rank=0.25).kept
    depthwise = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert all(kept[name].startswith("depthwise") for name in depthwise)


def test_energy_by_rank():
    values = torch.tensor([[3.0, 2.0, 1.0, 1.0], [5.0, 0.0, 0.0, 0.0]])  # squares 9, 4, 1, 1 of 15
    shares = [0.5, 9 / 15, 0.7, 13 / 15, 0.99, 1.0]
    assert [rank_for_energy(values, share) for share in shares] == [1, 1, 2, 2, 4, 4]
    assert rank_for_energy(torch.zeros(1, 3), 0.9) == 1


def test_the_example_has_the_size_and_dtype_of_the_network():
    opened = open_network(NetworkAsked("digits_vgg", input_size=(48, 40)))
    opened.model.double()
    example = opened.example(2)
    assert (example.shape, example.dtype) == ((2, 3, 48, 40), torch.float64)
    assert torch.equal(example, opened.example(2))


def test_energies_are_of_all_groups_together():
    """Squared: 16 + 9 and 0 + 1 of two groups, 25/26 of it at rank 1."""
    assert energies_of(torch.tensor([[4.0, 0.0], [3.0, 1.0]])) == ((1, pytest.approx(25 / 26)), (2, 1.0))
    assert energies_of(torch.zeros(1, 3)) == ()
