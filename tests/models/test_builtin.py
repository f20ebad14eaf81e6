"""Every built-in network keeps the promises made for it."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from cnncompress.data import Images, load_data, make_loader
from cnncompress.models import list_models, load_model
from cnncompress.models.builtin import BUILTIN

TRAINED = sorted(name for name, network in BUILTIN.items() if network.weights is not None)
SOME = 100
SLACK = 5.0  # points by which a part of the images may differ from all: 3 standard errors of 97 % of 100


def accuracy(name: str, images: Images, every: int = 1) -> float:
    model = load_model(name).model
    chosen = range(0, len(images), every)
    with torch.inference_mode():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in make_loader(images, 64, indices=chosen))
    return 100 * right / len(chosen)


def held_out(name: str) -> Images:
    """The images that neither training nor any choice has seen."""
    return load_data(f"{BUILTIN[name].data}:test", load_model(name).preprocessing, 10).val


@pytest.mark.parametrize("name", TRAINED)
def test_known_by_name_small_and_about_as_accurate_as_it_says(name):
    network, images = BUILTIN[name], held_out(name)
    assert name in list_models()
    assert network.weights.stat().st_size < 4_000_000
    assert all(torch.isfinite(p).all() for p in load_model(name).model.parameters())
    assert accuracy(name, images, every=len(images) // SOME) >= network.accuracy - SLACK


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_accuracy_on_images_never_trained_on(name):
    assert accuracy(name, held_out(name)) >= BUILTIN[name].accuracy


@pytest.mark.parametrize("name", TRAINED)
def test_takes_the_images_of_its_data_set_and_other_numbers_of_classes(name):
    network = BUILTIN[name]
    image, label = load_data(network.data, network.preprocessing, 10).val[0]
    assert image.shape == (3, *network.preprocessing.size)
    assert 0 <= label < 10
    assert network.build(num_classes=3).eval()(image[None]).shape == (1, 3)


def test_shape_of_digits_vgg():
    model = load_model("digits_vgg").model
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == 6
    assert [m.out_features for m in model.modules() if isinstance(m, nn.Linear)] == [256, 256, 10]
    params = sum(p.numel() for p in model.parameters())
    linear = sum(p.numel() for m in model.modules() if isinstance(m, nn.Linear) for p in m.parameters())
    # 1024·256 + 256, 256·256 + 256, 256·10 + 10
    assert linear == 262_400 + 65_792 + 2_570
    assert linear / params > 0.8


def test_shape_of_photodigits_vgg():
    model = load_model("photodigits_vgg").model
    widths = [3, 32, 64, 64, 128, 128, 256, 256]
    convolutions = sum(9 * before * after + after for before, after in pairwise(widths))
    normalisations, linear = 2 * sum(widths[1:]), 256 * 10 + 10
    assert sum(p.numel() for p in model.parameters()) == convolutions + normalisations + linear


@pytest.mark.parametrize(
    ("name", "arguments", "params"),
    [
        ("caffenet", {}, 2_332_704 + 1_376 + 9217 * 4096 + 4097 * 4096 + 4097 * 1000),
        ("cifar_nin", {}, 966_986),
        (
            "cifar_nin",  # 48, 40, 24 filters, then six times 48
            {"width_mult": 0.25},
            (76 * 48 + 49 * 40 + 41 * 24) + (601 * 48 + 2 * 49 * 48) + (433 * 48 + 49 * 48 + 49 * 10),
        ),
        ("resnet50_v1", {}, 25_503_976 + 2 * 26_560),  # of channels that are normalised
        ("vgg11_gmp", {}, 32_200_040),
        ("wrn_40_2", {}, 2_243_546),
        ("wrn_40_2", {"depth": 28, "width": 10}, 36_479_194),
    ],
)
def test_untrained_networks_have_the_parameters_of_their_papers(name, arguments, params):
    """Deep Roots, Ioannou et al. 2016, SECL; its later log rounds WRN-28-10 to 3.64792e7."""
    with torch.device("meta"):
        assert sum(p.numel() for p in BUILTIN[name].build(**arguments).parameters()) == params


def test_an_untrained_network_says_so_and_classifies():
    loaded = load_model("cifar_nin")
    assert "random (seed 0): there are none of it" in loaded.weights
    assert loaded.model(torch.zeros(2, 3, *loaded.preprocessing.size)).shape == (2, 10)
