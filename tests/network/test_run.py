"""One forward pass: the answers in what networks return, and one line about what fails."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import cnncompress as cc
from cnncompress.errors import CompressError
from cnncompress.network.evaluate import evaluate
from cnncompress.network.run import forward, logits, run, same_outputs, takes_channels_last
from cnncompress.network.trace import trace
from tests.correction.networks import images, made
from tests.decompositions.helpers import randn
from tests.deprecated import still_has


class Calls(nn.Module):
    """A convolution and a head; `end` makes of their output what the network returns."""

    def __init__(self, end: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.conv, self.head, self.end = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5), end

    def forward(self, x: Tensor) -> object:
        return self.end(self.head(self.conv(x).mean((2, 3))))


def test_where_the_answers_are():
    x, other = randn(2, 3), randn(2, 4)
    found = [x, (x, other), [x], {"out": x, "aux": other}, OrderedDict(aux=other, logits=x), {"scores": x, "n": 2}]
    for output in (*found, ({"out": x},), SimpleNamespace(logits=x, aux_logits=None)):
        assert logits(output) is x


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ((), "a tuple, not a tensor"),
        (None, "a NoneType, not a tensor"),
        ({"boxes": randn(2, 4), "scores": randn(2)}, "a dict of boxes, scores, not a tensor"),
        ([{"boxes": randn(2, 4)}], "a list of a dict of boxes, not a tensor"),
        (torch.tensor([3, 4]), "torch.int64, not logits"),
    ],
)
def test_what_has_no_answers(output, words):
    with pytest.raises(CompressError, match=words):
        logits(output)


ENDS = {
    "dict": lambda y: {"out": y},
    "detections": lambda y: [{"boxes": row} for row in y],
    "classes": lambda y: y.argmax(1),
    "nothing": lambda y: None,
}


@pytest.mark.parametrize("end", ENDS)
def test_counting_and_decomposing_need_no_answers(end):
    model, x = made(Calls(ENDS[end])), images(2)
    assert trace(model, x).keys() == {"conv", "head"}
    assert cc.profile(model, x).macs == 8 * 8 * 8 * 27 + 8 * 5
    small = cc.decompose(model, cc.plan(model, x, rank=2), progress=False)
    assert type(run(small, x)) is type(run(model, x))


@pytest.mark.parametrize("end", [torch.squeeze, lambda y: y[:, 0], lambda y: y[:, :1].squeeze()])
def test_one_image_is_a_batch_whatever_the_network_squeezes(end):
    model, x = made(Calls(end)), images(3)
    assert torch.allclose(forward(model, x[:1]), forward(model, x)[:1], atol=1e-6)


def test_accuracy_with_one_image_left_over():
    model, x = made(Calls(torch.squeeze)), images(5)
    labels = torch.tensor([0, 1, 2, 3, 4])
    batches = [(x[:4], labels[:4]), (x[4:], labels[4:])]
    assert evaluate(model, batches, progress=False) == evaluate(made(Calls(nn.Identity())), batches, progress=False)


class Pair(Calls):
    """Takes something beside the images."""

    def forward(self, x: Tensor, meta: Tensor, *, scale: float) -> Tensor:
        return super().forward(x) + scale * meta


class Optional(Calls):
    """Can take something beside the images."""

    def forward(self, x: Tensor, meta: Tensor | None = None, **more: object) -> Tensor:
        return super().forward(x)


def test_further_inputs_are_named():
    with pytest.raises(CompressError, match=r"Pair takes 3 inputs \(x, meta, scale\): give a factory"):
        cc.profile(Pair(nn.Identity()), images(1))
    assert cc.profile(Optional(nn.Identity()), images(1)).macs


def test_a_network_for_one_image_at_a_time():
    fixed = made(nn.Sequential(nn.Conv2d(3, 2, 3), nn.Unflatten(0, (1, -1)), nn.Flatten(), nn.Linear(72, 4)))
    assert forward(fixed, images(1)).shape == (1, 4)
    with pytest.raises(CompressError, match=r"takes one image but fails on a batch of 3: .*; give --batch-size 1"):
        forward(fixed, images(3))
    with pytest.raises(CompressError, match=r"answers a batch of 3 with a tensor of \(1, 15\)"):
        forward(made(Calls(lambda y: y.reshape(1, -1))), images(3))


@pytest.mark.filterwarnings("ignore")
@still_has("jit.script")
@pytest.mark.parametrize("make", [lambda m: torch.jit.script(m), lambda m: torch.jit.trace(m, images(1))])
def test_torchscript_is_named(make):
    with pytest.raises(CompressError, match="TorchScript has no layers that can be replaced"):
        cc.plan(make(nn.Sequential(nn.Conv2d(3, 8, 3))), images(1))


def test_sparse_answers_are_named():
    with pytest.raises(CompressError, match="Calls returns a sparse tensor"):
        run(Calls(lambda x: {"logits": x.to_sparse()}), images(2))


@pytest.mark.filterwarnings("error")
def test_complex_features_are_compared_in_both_parts():
    one = torch.tensor([1 + 1j, 2.0])
    assert same_outputs(one, one.clone())
    assert not same_outputs(one, one.conj())


class Viewed(nn.Module):
    """Takes its values apart in the order that they have in memory: with `view`, or by their strides."""

    def __init__(self, strided: bool) -> None:
        super().__init__()
        self.conv, self.head, self.strided = nn.Conv2d(3, 4, 1), nn.Linear(4 * 64, 5), strided

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.head(x.as_strided((len(x), 256), (256, 1)) if self.strided else x.view(len(x), -1))


class Noisy(nn.Module):
    """Random numbers in its answers."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) + torch.rand(len(x), 3)


@pytest.mark.parametrize("make", [lambda: Calls(lambda y: y), Noisy])
def test_most_networks_take_images_in_channels_last(make):
    model, x = made(make()).train(), images(2)
    assert takes_channels_last(model, x)
    assert model.training
    assert x.is_contiguous()


@pytest.mark.parametrize("strided", [False, True])
def test_a_network_that_minds_the_order_in_memory_does_not(strided):
    assert not takes_channels_last(made(Viewed(strided)), images(2))
