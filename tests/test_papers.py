"""The files of `configs/` give the parameters and MACs that papers print, but for what each file says.

Papers count one addition a filter for each bias, once; MACs here count none.
"""

from __future__ import annotations

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


@pytest.mark.parametrize(("shortcuts", "depth"), [("plain", 11), ("acdc", 12)])
def test_secl_wide_residual_network(shortcuts, depth):
    """100,202 parameters are two ways to count: 11 layers, or 12 of them also in the three shortcuts.

    30,314 are in the rest, with the depthwise stages and without the shortcuts; 2,688 entries a diagonal in the others.
    """
    told = report("secl2018_wrn_40_2")
    assert (told.rows[0].params, told.rows[0].macs) == (2_243_546, 327_599_360)
    assert any("trains as 100,202 parameters" in note for note in told.notes)
    shortcut = {"plain": 16 * 32 + 32 * 64 + 64 * 128, "acdc": 2 * depth * (32 + 64 + 128)}[shortcuts]
    assert 30_314 + 2 * depth * 12 * (32 + 64 + 128) + shortcut == 100_202


@pytest.mark.slow
def test_the_same_of_28_layers_ten_times_as_wide():
    """3.64792e7 and 5.55498e5 parameters; 5.24564e9 MACs count one for each normalised number."""
    told = report("secl2018_wrn_40_2", model_arg={"depth": 28, "width": 10})
    groups = [(16, 160, 1024, 1024), (160, 320, 1024, 256), (320, 640, 256, 64)]
    normalised = 640 * 64 + sum(c * before + 7 * f * after for c, f, before, after in groups)
    assert told.rows[0].params == 36_479_194
    assert f"{told.rows[0].macs + normalised:.5e}" == "5.24564e+09"
    assert any("trains as 555,498 parameters" in note for note in told.notes)


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
    """Parameters as printed, of the convolutions alone; MACs by the shapes, which are 0.11e9 fewer than printed."""
    original, small = rows(f"ioannou2016_googlenet_{name}")
    classifier = 1024 * 1000
    assert original == (5_973_552 + classifier + 1000, 1_581_647_872 + classifier)
    assert small == (params + classifier + 1000, macs + classifier)
    assert (f"{5.973552:.2f}", f"{params / 1e6:.2f}") == ("5.97", printed)
