"""Answers that are no logits: how they are read, how far apart they are, and metrics that do not vanish on them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import cnncompress as cc
from cnncompress.correction import reconstruct
from cnncompress.errors import CompressError
from cnncompress.network.divergence import Answers
from cnncompress.network.meaning import Meaning, meaning_of, spread
from tests.correction.networks import images, made
from tests.decompositions.helpers import randn


class Ending(nn.Module):
    """Two convolutions, a head that is called on maps or their means, and something at the end."""

    def __init__(self, end: object, outputs: int = 5, maps: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head, self.end, self.maps = nn.Conv2d(8, outputs, 1), end, maps

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(F.relu(self.b(F.relu(self.a(x)))))
        return self.end(y if self.maps else y.mean((2, 3)))  # type: ignore[operator]


ENDINGS = {
    "logits": (lambda: Ending(nn.Identity()), "logits"),
    "log-softmax": (lambda: Ending(nn.LogSoftmax(1)), "logits"),
    "softmax": (lambda: Ending(nn.Softmax(1)), "probabilities"),
    "softmax function": (lambda: Ending(lambda y: F.softmax(y, -1).flatten(1)), "probabilities"),
    "sigmoid": (lambda: Ending(nn.Sigmoid()), "separate"),
    "single sigmoid": (lambda: Ending(lambda y: torch.sigmoid(y).squeeze(1), 1), "separate"),
    "single logit": (lambda: Ending(nn.Identity(), 1), "numbers"),
    "one number": (lambda: Ending(lambda y: y[:, 0], 1), "numbers"),
    "maps": (lambda: Ending(nn.Identity(), 4, maps=True), "numbers"),
    "dict of maps": (lambda: Ending(lambda y: {"out": y, "aux": None}, 4, maps=True), "numbers"),
    "mask": (lambda: Ending(nn.Sigmoid(), 1, maps=True), "separate"),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_how_answers_are_read(name):
    make, kind = ENDINGS[name]
    assert meaning_of(made(make()), images(2)).kind == kind


def test_divergences_by_formula():
    p, q = torch.tensor([[0.2, 0.8]]).double(), torch.tensor([[0.5, 0.5]]).double()
    classes = 0.2 * math.log(0.2 / 0.5) + 0.8 * math.log(0.8 / 0.5)
    assert Meaning("probabilities").divergences(p, q).tolist() == pytest.approx([classes])
    assert Meaning("logits").divergences(p.log(), q.log()).tolist() == pytest.approx([classes])
    assert Meaning("separate").divergences(p, q).tolist() == pytest.approx([2 * classes])
    y = torch.tensor([[1.0], [3.0]]).double()  # of variance 1
    assert Meaning("numbers").divergences(y, y + 2).tolist() == pytest.approx([2.0, 2.0])
    maps = randn(3, 2, 4, 4)
    apart = Meaning("numbers").divergences(maps, maps + 1)
    assert apart.tolist() == pytest.approx([2 * 0.5 / spread(maps)] * 3)  # two channels, mean over positions


@pytest.mark.parametrize("kind", ["probabilities", "separate", "numbers"])
def test_the_second_moment_of_the_gradient_is_the_curvature_of_the_divergence(kind):
    """The Fisher information of what is drawn is the second derivative of the divergence."""
    answers = torch.tensor([[0.2, 0.5, 0.3]]).double()
    meaning, draws = Meaning(kind), 4000
    each = answers.detach().expand(draws, 3).clone().requires_grad_()
    (rows,) = torch.autograd.grad(meaning.sampled_loss(each, list(range(draws))), each)
    fisher = rows.T @ rows / draws
    other = answers.clone().requires_grad_()
    scale = 1.0 if kind != "numbers" else spread(answers)
    curvature = torch.autograd.functional.hessian(lambda q: meaning.divergences(answers, q).sum() * scale, other)[
        0, :, 0
    ]
    assert torch.allclose(fisher, curvature, atol=0.1 * float(curvature.abs().max()))


@pytest.mark.parametrize("name", ENDINGS)
def test_metric_budget_and_correction_work_on_every_ending(name):
    model, x = made(ENDINGS[name][0]()), images(16)
    statistics = cc.collect_statistics(model, [x], "kronecker", progress=False)
    assert all(bool(s.gradient.any()) for s in statistics.values())
    answers = Answers(model, x)
    assert answers.divergence(model) == pytest.approx(0, abs=1e-9)
    small = cc.compress(model, x, cc.Budget(macs=0.7), method="spatial-svd").network
    assert 0 < answers.divergence(small) < 10
    better, remarks = reconstruct(model, small, x, 3, progress=False)
    assert remarks
    assert answers.divergence(better) < 10


def test_numbers_count_against_their_spread_whatever_their_unit():
    model, other, x = made(Ending(nn.Identity(), 1)), made(Ending(lambda y: 1000 * y, 1)), images(12)
    one, two = (cc.collect_statistics(m, [x], "kronecker", progress=False)["a"].gradient for m in (model, other))
    assert torch.allclose(one, two, rtol=1e-3)
    parts = cc.collect_statistics(model, [x[:5], x[5:]], "kronecker", progress=False)["a"].gradient
    assert torch.allclose(one, parts, rtol=1e-3)


def test_a_metric_that_vanishes_is_refused():
    with pytest.raises(CompressError, match="gradients of its answers are all zero"):
        cc.collect_statistics(made(Ending(lambda y: 0 * y)), [images(4)], "kronecker", progress=False)
