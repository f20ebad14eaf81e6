"""The files of `configs/` give the parameters and MACs that papers print, but for what each file says.

Papers count one addition a filter for each bias, once; MACs here count none.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import cnncompress as cc
from cnncompress.api import run_decompose
from cnncompress.config import DecomposeSettings, merge
from cnncompress.models.builtin import BUILTIN

CONFIGS = Path(__file__).parents[1] / "configs"
NIN_BIASES = 192 + 160 + 96 + 5 * 192 + 10
VGG_BIASES = 64 + 128 + 2 * 256 + 4 * 512  # of the convolutions
HEAD_BIASES = 4096 + 4096 + 1000
RESNET_BIASES = 64 + 1000
NORMALISED = 2 * 26_560  # parameters of batch normalisations
MAP = 224 * 224  # positions of the first layer


def report(config: str, **changes):
    settings = merge(DecomposeSettings, CONFIGS / f"{config}.yaml", {"dry_run": True, **changes}).resolved()
    return run_decompose(settings, []).report


def rows(config: str):
    """Parameters and MACs of the network, and of what the file makes of it."""
    return [(row.params, row.macs) for row in report(config).rows]


@pytest.mark.parametrize(("name", "macs", "params"), [("root2", 163_505_546, 736_586), ("root8", 103_343_498, 314_954)])
def test_deep_roots_network_in_network(name, macs, params):
    original, small = rows(f"ioannou2017_nin_{name}")
    assert original == (966_986, 222_487_946 - NIN_BIASES)
    assert small == (params, macs - NIN_BIASES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "macs", "params"),
    [
        ("root2", 3_684_566_056, 25_448_680),
        ("root8", 2_860_876_840, 23_195_368),
        ("root64", 2_114_860_072, 15_312_808),
    ],
)
def test_deep_roots_resnet_50(name, macs, params):
    """The paper leaves out batch normalisations."""
    original, small = rows(f"ioannou2017_resnet50_{name}")
    assert original == (25_503_976 + NORMALISED, 3_857_974_312 - RESNET_BIASES)
    assert small == (params + NORMALISED, macs - RESNET_BIASES)


@pytest.mark.slow
@pytest.mark.parametrize(("groups", "fewer"), [(8, 13_367_808), (64, 29_636_928)])
def test_deep_roots_resnet_200(groups, fewer):
    network = BUILTIN["resnet50_v1"].build(depth=200)
    method = f"root:groups={groups},join=network"
    plan = cc.plan(network, torch.zeros(1, 3, 64, 64), method=method, layers=["*.spatial"])
    assert sum(before - after for before, after in (layer.params for layer in plan.layers.values())) == fewer


@pytest.mark.slow
def test_vgg11_gmp_lr():
    original, small = rows("ioannou2016_vgg11_gmp_lr")
    biases = VGG_BIASES + HEAD_BIASES
    assert original == (32_200_040, 7_508_438_696 - biases)
    assert small == (26_054_888, 2_518_134_440 - biases)


@pytest.mark.slow
def test_vgg11_gmp_lr_2x():
    _, small = rows("ioannou2016_vgg11_gmp_lr_2x")
    assert small == (31_298_792, 3_136_795_304 - VGG_BIASES - HEAD_BIASES - 2 * 512)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "macs", "params", "more", "first"),
    [
        ("lr_join", 3_854_023_016, 27_257_768, 0, 3 * 64 * 3 + 64 * 64),
        ("lr_join_wfull", 6_336_823_656, 37_184_712, 2 * 512, 3 * (48 * 3 + 16 * 9) + 64 * 64),
        ("sf", 6_525_794_664, 29_658_024, 0, 3 * 64 * 3 + 64 * 64 * 3),
    ],
)
def test_vgg11_gmp_with_a_layer_after_each(name, macs, params, more, first):
    """The paper has biases twice and also replaces the first layer, by `first` weights for 3·64·9."""
    biases, dearer = VGG_BIASES + more, first - 3 * 64 * 9
    _, small = rows(f"ioannou2016_vgg11_gmp_{name}")
    assert small[0] == params - biases - dearer
    assert small[1] == macs - 2 * biases - HEAD_BIASES - dearer * MAP


def secl(depth: int, width: int, layers: int, taps: int = 9) -> tuple[int, float]:
    """Parameters and multiply-adds of a wide residual network as the authors' log counts them.

    All `layers` of diagonals have their parameters. Their multiply-adds are 4n + 5n·log₂n each or n² in all, whichever
    is less, with n the larger one of channels and filters, at the resolution of the input, also of strided layers.
    Every input of a ReLU counts as one.
    """
    widths, size, params, macs = [16, 16 * width, 32 * width, 64 * width], 32, 0, 3 * 16 * 9 * 32**2
    for before, after in pairwise(widths):
        for block in range((depth - 4) // 6):
            C, inside = (after, size) if block else (before, size)
            size = size // 2 if block == 0 and before > 16 else size
            macs += C * inside**2 + after * size**2
            for channels, seen in ((C, inside), (after, size)):
                fast = layers * (4 * after + 5 * after * math.log2(after))
                params += 2 * after * layers + taps * channels
                macs += channels * 9 * size**2 + min(fast, after**2) * seen**2
            params, macs = params + 2 * (C + after), macs + (0 if block else before * after * size**2)
            params += 0 if block else before * after
    return params + 3 * 16 * 9 + 12 * widths[3] + 10, macs + widths[3] * size**2 + 10 * (widths[3] + 1)


def test_secl_wide_residual_network():
    """The log has 100,202 parameters and 52.7 million multiply-adds: 11 layers, as the last of twelve is left out.

    The paper prints 46.4 thousand and 33.2 million for 12 layers, which are those of one, and 38.7 thousand with
    filters of diagonals, six for nine taps.
    """
    told = report("secl2018_wrn_40_2")
    assert (told.rows[0].params, told.rows[0].macs) == (2_243_546, 327_599_360)
    assert any("trains as 100,202 parameters" in note for note in told.notes)
    assert (secl(40, 2, 11)[0], f"{secl(40, 2, 11)[1]:.4g}") == (100_202, "5.27e+07")
    assert (secl(40, 2, 1)[0], f"{secl(40, 2, 1)[1]:.3g}") == (46_442, "3.32e+07")
    printed = report("secl2018_wrn_40_2_lr", method="acdc:taps=diagonals,depth=1")
    assert any("trains as 38,714 parameters" in note for note in printed.notes)
    assert secl(40, 2, 1, taps=6)[0] == 38_714
    assert any(f"trains as {secl(40, 2, 12, taps=6)[0]:,}" in note for note in report("secl2018_wrn_40_2_lr").notes)


@pytest.mark.slow
def test_the_same_of_28_layers_ten_times_as_wide():
    """3.64792e7 and 5.55498e5 parameters, 5.24564e9 and 7.99262e8 multiply-adds, all with one for each input of a ReLU.

    The first of both pairs are of the plain network.
    """
    told = report("secl2018_wrn_40_2", model_arg={"depth": 28, "width": 10})
    groups = [(16, 160, 1024, 1024), (160, 320, 1024, 256), (320, 640, 256, 64)]
    rectified = 640 * 64 + sum(c * before + 7 * f * after for c, f, before, after in groups)
    assert told.rows[0].params == 36_479_194
    assert f"{told.rows[0].macs + rectified:.5e}" == "5.24564e+09"
    assert any("trains as 555,498 parameters" in note for note in told.notes)
    assert (secl(28, 10, 11)[0], f"{secl(28, 10, 11)[1]:.5e}") == (555_498, "7.99262e+08")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "biases", "weights", "macs"),
    [
        ("caffenet", 96 + 256 + 384 + 384 + 256, (2_332_704, 466_312), (665_784_864, 125_897_640)),
        (
            "vgg16",
            2 * 64 + 2 * 128 + 3 * 256 + 6 * 512,
            (14_710_464, 5_358_573),
            (15_346_630_656, 4_944_393_216),
        ),
    ],
)
def test_tai_convolutions(name, biases, weights, macs):
    """2.75 and 5 times fewer weights in the paper."""
    layers = report(f"tai2016_{name}", weights="none").layers
    for i in range(2):
        assert sum(layer.params[i] for layer in layers) == weights[i] + biases
        assert sum(layer.macs[i] for layer in layers) == macs[i]


@pytest.mark.few(1)
@pytest.mark.parametrize(("colours", "times"), [(4, 2.97), (6, 2.95), (12, 2.91), (24, 2.82)])
def test_denton_first_layer(colours, times):
    """The paper has 112x112 outputs, a quarter of the inputs, where the layer has 110x110; some digits are cut off."""
    (layer,) = report("denton2014_first_layer_counted", method=f"monochromatic:colours={colours}").layers
    assert layer.macs == (96 * 3 * 49 * 110**2, 3 * colours * 224**2 + 96 * 49 * 110**2)
    assert layer.macs[0] / layer.macs[1] == pytest.approx(times, abs=0.01)


@pytest.mark.parametrize(
    ("name", "params", "printed", "macs"),
    [("lr", 3_503_664, "3.50", 1_065_637_888), ("lr_conv1", 3_421_872, "3.42", 733_272_064)],
)
def test_googlenet(name, params, printed, macs):
    """Parameters as printed, of the convolutions alone, and the original's MACs, with the two heads it trains with.

    Of the MACs of both networks the same number is missing, within what the digits tell.
    """
    original, small = rows(f"ioannou2016_googlenet_{name}")
    classifier = 1024 * 1000
    heads = 2 * (2048 * 1024 + classifier) + (512 + 528) * 128 * 16
    assert f"{(original[1] + heads) / 1e9:.2f}" == "1.59"
    missing = {"lr": 1.18e9, "lr_conv1": 0.84e9}[name] - small[1] - heads
    assert abs(missing - 0.101e9) < 0.005e9
    assert original == (5_973_552 + classifier + 1000, 1_581_647_872 + classifier)
    assert small == (params + classifier + 1000, macs + classifier)
    assert (f"{5.973552:.2f}", f"{params / 1e6:.2f}") == ("5.97", printed)
