"""What networks take in: channels and types; and batches of any loader."""

import argparse
from collections import UserDict, namedtuple

import numpy as np
import pytest
import torch
from torch import nn

from cnncompress.correction import decompose_in_order
from cnncompress.errors import CompressError, DataError
from cnncompress.finetuning import FinetuneSettings, Lessons, finetune
from cnncompress.network.divergence import Answers
from cnncompress.network.evaluate import evaluate
from cnncompress.network.inputs import in_single, input_channels, input_dtype, read_batch
from cnncompress.planning import plan
from cnncompress.statistics import collect_statistics

IMAGES, LABELS = torch.rand(8, 3, 6, 6), torch.arange(8) % 3
Pair = namedtuple("Pair", "image label")


class Focus(nn.Module):
    """A network whose first convolution sees four times the channels of the image."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(4 * channels, 8, 1)

    def forward(self, x):
        return self.conv(nn.functional.pixel_unshuffle(x, 2)).mean((2, 3))


class Repeated(nn.Module):
    """A network that makes three channels of one by itself, and takes nothing else."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Conv2d(5, 8, 3)
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x):
        return self.conv(x.expand(-1, 3, -1, -1)).mean((2, 3))


class Normalised(nn.Module):
    """A network that prepares its images before the first layer."""

    def __init__(self, channels):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(channels), nn.Conv2d(channels, 8, 3)

    def forward(self, x):
        return self.conv(self.norm(x)).mean((2, 3))


@pytest.mark.parametrize(
    ("network", "channels"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3)), 3),
        (nn.Sequential(nn.Conv2d(1, 4, 3)), 1),
        (nn.Sequential(nn.Conv2d(13, 4, 3)), 13),
        (nn.Sequential(nn.Flatten(), nn.Linear(36, 2)), 1),
        (nn.Sequential(nn.Flatten(), nn.Linear(108, 2)), 3),
        (nn.Sequential(nn.Flatten(), nn.Linear(7, 2)), 3),
        (nn.Sequential(nn.Conv2d(1, 4, 3).half()), 1),
        (nn.ReLU(), 3),
        (Focus(1), 1),
        (Focus(3), 3),
        (Repeated(), 3),
        (Normalised(5), 5),
        (Normalised(1), 1),
    ],
)
def test_channels_are_those_that_the_first_layer_can_take(network, channels):
    network.train()
    assert input_channels(network, (6, 6)) == channels
    assert network.training
    assert not any(m._forward_pre_hooks for m in network.modules())


@pytest.mark.parametrize(
    ("batch", "labelled"),
    [
        (IMAGES, False),
        ([IMAGES], False),
        ((IMAGES, LABELS), True),
        ([IMAGES, LABELS], True),
        ((IMAGES, LABELS, ["path"] * 8), True),
        ((IMAGES, ["path"] * 8, LABELS), True),
        ((IMAGES, ["path"] * 8), False),
        ((IMAGES, LABELS[:, None]), True),
        ((IMAGES, LABELS.tolist()), True),
        ((IMAGES, LABELS.double()), True),
        ((IMAGES, nn.functional.one_hot(LABELS)), True),
        ((IMAGES, torch.rand(8, 6, 6)), False),
        ((IMAGES, torch.rand(8)), False),
        (Pair(IMAGES, LABELS), True),
        ((IMAGES.numpy(), LABELS.numpy()), True),
        ((IMAGES.numpy()[:, :, ::-1].copy()[:, :, ::-1], LABELS.numpy()), True),
        (list(IMAGES), False),
        ({"image": IMAGES, "label": LABELS}, True),
        ({"pixel_values": IMAGES, "labels": LABELS}, True),
        (UserDict(Target=LABELS, IMG=IMAGES), True),
        ({"x": IMAGES}, False),
        ((IMAGES.double(), LABELS.int()), True),
    ],
)
def test_batches_that_loaders_give(batch, labelled):
    images, labels = read_batch(batch)
    assert torch.equal(images, IMAGES)
    assert images.dtype == torch.float32
    if labelled:
        assert torch.equal(labels, LABELS)
        assert labels.dtype == torch.int64
    else:
        assert labels is None
    assert read_batch(batch, torch.float64, labels=False)[0].dtype == torch.float64


@pytest.mark.parametrize("shape", [(8, 4, 4), (64, 1, 1), (512, 3, 3), (16, 7, 1), (64, 40, 1), (32, 5, 3)])
def test_many_channels_of_few_pixels_are_no_channels_last(shape):
    images, _ = read_batch(torch.rand(2, *shape))
    assert images.shape == (2, *shape)


@pytest.mark.parametrize("shape", [(5, 5, 3), (28, 28, 1), (32, 32, 4), (20, 30, 3)])
def test_channels_last_are_told(shape):
    with pytest.raises(DataError, match="channels last"):
        read_batch(torch.rand(2, *shape))


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        ((IMAGES * 255).byte(), "uint8"),
        (IMAGES.long(), "int64"),
        (torch.rand(3, 16, 16), "image[None]"),
        (IMAGES.permute(0, 2, 3, 1), "permute(0, 3, 1, 2)"),
        (((IMAGES, IMAGES), LABELS), "tuple where images"),
        ({"picture": IMAGES}, "picture has no images"),
        ({}, "nothing has no images"),
        (None, "NoneType"),
        ((), "tuple where images"),
        ("images", "str where images"),
        (argparse.Namespace(image=IMAGES), "Namespace where images"),
        ([torch.rand(3, 6, 6), torch.rand(3, 5, 5)], "different sizes"),
        ([(IMAGES[0], 0), (IMAGES[1], 1)], "tuple where images"),
        (np.array(["a"]), "ndarray where images"),
    ],
)
def test_batches_that_hold_no_images_are_refused_in_one_line(batch, reason):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    for use in (lambda b: read_batch(b), lambda b: collect_statistics(network, [b]), lambda b: evaluate(network, [b])):
        with pytest.raises(DataError) as error:
            use(batch)
        assert reason in str(error.value)
        assert "\n" not in str(error.value)


def test_images_without_labels_have_no_accuracy():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(DataError, match="no labels"):
        evaluate(network, [IMAGES])
    with pytest.raises(DataError, match="no images"):
        evaluate(network, [])
    with pytest.raises(CompressError, match="no images"):
        collect_statistics(network, [])
    assert evaluate(network, [(IMAGES[:0], LABELS[:0]), (IMAGES, LABELS)]).images == 8


# --- other types of numbers ---


def network(dtype):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)).to(dtype).eval()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_statistics_of_other_types_are_those_of_the_same_numbers_in_float32(dtype):
    model = network(dtype)
    same = network(torch.float32)
    same.load_state_dict(model.state_dict())
    images = IMAGES.to(dtype)
    for metric in ("kronecker", "data-covariance", "mahalanobis"):
        found = collect_statistics(model, [(images, LABELS)], metric, positions=None)
        expected = collect_statistics(same, [(images.float(), LABELS)], metric, positions=None)
        for name in ("0", "3", "7"):
            for field in ("mean", "moment", "sensitivity"):
                ours, theirs = getattr(found[name], field), getattr(expected[name], field)
                assert (ours is None) == (theirs is None)
                if ours is not None:
                    assert ours.dtype == torch.float32
                    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)
    assert input_dtype(model) == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_of_other_types_are_compressed_and_keep_their_type(dtype):
    model, images = network(dtype), torch.rand(32, 3, 6, 6)
    planned = plan(model, images[:1].to(dtype), rank=0.5, metric="data-covariance")
    statistics = collect_statistics(model, [images], "data-covariance")
    small = decompose_in_order(model, planned, images, statistics=statistics, progress=False)
    assert {p.dtype for p in small.parameters()} == {dtype}
    assert Answers(model, images).divergence(small) < 0.05
    assert Answers(model, images.double()).divergence(model) == 0
    assert evaluate(small, [(images, torch.zeros(32, dtype=torch.long))], progress=False).images == 32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_trained_in_float32_and_rounded(dtype, tmp_path):
    model = network(dtype)
    data = [(image, int(label)) for image, label in zip(IMAGES, LABELS, strict=True)]
    chosen = FinetuneSettings(batch_size=4, lr=0.1, epochs=2)
    result = finetune(model, Lessons(data, data), chosen, tmp_path / "checkpoints")
    assert {t.dtype for t in model.state_dict().values() if t.is_floating_point()} == {dtype}
    assert "trained in float32" in result.note
    again = evaluate(model, [(IMAGES, LABELS)], progress=False)
    assert again.top1 == result.best.top1
    assert in_single(model) is not model
    assert input_dtype(in_single(model)) == torch.float32


@pytest.mark.parametrize("images", [IMAGES.numpy(), IMAGES.double()])
def test_images_of_other_kinds_serve_for_correction(images):
    model = network(torch.float32)
    small = decompose_in_order(
        model,
        plan(model, IMAGES[:1], rank=0.5, metric="data-covariance"),
        images,
        statistics=collect_statistics(model, [images]),
        progress=False,
    )
    assert {p.dtype for p in small.parameters()} == {torch.float32}
