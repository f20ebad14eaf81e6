"""What is no Conv2d or Linear is named with its multiply-accumulates and the reason why it stays."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import DeformConv2d

import cnncompress as cc
from cnncompress.errors import UsageError
from cnncompress.network.others import ITSELF
from cnncompress.pipeline.inspect import inspect_layers
from tests.correction.networks import images, made
from tests.deprecated import still_has


class Mixed(nn.Module):
    """One of each, on images of 8 by 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.offsets = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 18, 1)
        self.up, self.deform = nn.ConvTranspose2d(8, 8, 2, 2), DeformConv2d(8, 8, 3, padding=1)
        self.line, self.volume = nn.Conv1d(8, 4, 3, padding=1), nn.Conv3d(1, 2, 3, padding=1)
        self.lstm, self.attention = nn.LSTM(8, 4, batch_first=True), nn.MultiheadAttention(8, 2, batch_first=True)
        self.kernel = nn.Parameter(torch.ones(8, 8, 3, 3))
        self.block = Bare()
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(self.conv(x), self.kernel, padding=1)
        x = self.deform(x, self.offsets(x))
        tokens = x.flatten(2).mT
        extra = self.up(x).mean() + self.line(x.flatten(2)).mean() + self.volume(x[:, None]).mean()
        extra = extra + self.lstm(tokens)[0].mean() + self.attention(tokens, tokens, tokens)[0].mean()
        return self.head(self.block(x.mean((2, 3)))) + extra


class Bare(nn.Module):
    """A linear map with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.ones(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.matrix)


PIXELS = 64
EXPECTED = {
    ITSELF: (8 * 8 * 9 * PIXELS, "convolves by itself"),
    "deform": (8 * 8 * 9 * PIXELS, "DeformConv2d is not decomposed"),
    "up": (8 * 8 * 4 * PIXELS, "ConvTranspose2d is not decomposed"),
    "line": (4 * 8 * 3 * PIXELS, "Conv1d is not decomposed"),
    "volume": (2 * 27 * 8 * PIXELS, "Conv3d is not decomposed"),
    "lstm": (PIXELS * 4 * 4 * (8 + 4), "LSTM is not decomposed"),
    "attention": (4 * 8 * 8 * PIXELS + 2 * PIXELS * PIXELS * 8, "MultiheadAttention is not decomposed"),
    "block": (8 * 8, "multiplies matrices by itself"),
}


def test_modules_by_arithmetic():
    found = cc.profile(made(Mixed()), images(1)).others
    assert {o.name: o.macs for o in found} == {name: macs for name, (macs, _) in EXPECTED.items()}
    assert [o.macs for o in found] == sorted((o.macs for o in found), reverse=True)
    assert all(EXPECTED[o.name][1] in o.reason for o in found)
    assert {o.name: o.params for o in found}["up"] == 8 * 8 * 4 + 8


def test_plans_and_inspections_name_them():
    model, x = made(Mixed()), images(1)
    plan = cc.plan(model, x, rank=2, force=True)
    assert plan.kept.keys() >= EXPECTED.keys()
    share = 100 * EXPECTED["up"][0] / cc.profile(model, x).total_macs
    assert f"{share:.1f} % of the MACs" in plan.kept["up"]
    rows = {row.layer: row for row in inspect_layers(model, x)}
    assert all(rows[name].macs == macs and words in rows[name].note for name, (macs, words) in EXPECTED.items())


def test_a_budget_that_they_hold_up_says_so():
    model, x = made(Mixed()), images(1)
    most = max(EXPECTED, key=lambda name: EXPECTED[name][0])
    with pytest.raises(UsageError, match=r"of the MACs stay, in attention \(0\.\d\d\), .* and \d more") as error:
        cc.plan(model, x, budget=cc.Budget(macs=0.2))
    assert most in str(error.value)


@still_has("ao.quantization.quantize_dynamic")
@pytest.mark.filterwarnings("ignore")
def test_quantised_layers_are_named():
    model = made(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 4)))
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    assert "before quantising it" in cc.plan(quantised, images(1), rank=2).kept["2"]
