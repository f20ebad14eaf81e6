"""The built-in network keeps the promises made for it."""

from __future__ import annotations

import torch
from torch import nn

from cnncompress.data import load_data, make_loader
from cnncompress.models import load_model
from cnncompress.models.digits_vgg import WEIGHTS


def accuracy(part: str) -> float:
    loaded = load_model("digits_vgg")
    images = getattr(load_data("digits", loaded.preprocessing, 10), part)
    with torch.inference_mode():
        return sum(int((loaded.model(x).argmax(1) == y).sum()) for x, y in make_loader(images, 180)) / len(images)


def test_weights_are_small():
    assert WEIGHTS.stat().st_size < 2_000_000


def test_shape_of_the_network():
    model = load_model("digits_vgg").model
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == 6
    assert [m.out_features for m in model.modules() if isinstance(m, nn.Linear)] == [256, 256, 10]
    params = sum(p.numel() for p in model.parameters())
    linear = sum(p.numel() for m in model.modules() if isinstance(m, nn.Linear) for p in m.parameters())
    # 1024·256 + 256, 256·256 + 256, 256·10 + 10
    assert linear == 262_400 + 65_792 + 2_570
    assert linear / params > 0.8


def test_accuracy_on_digits_never_trained_on():
    assert accuracy("test") >= 0.97
    assert accuracy("val") >= 0.97
