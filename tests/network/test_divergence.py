"""The divergence of answers, against direct computation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from cnncompress.errors import CompressError
from cnncompress.network import divergence, parts
from cnncompress.network.divergence import Answers
from tests.decompositions.helpers import randn


class Logits(nn.Module):
    """The first pixels of an image, times a factor, as logits."""

    def __init__(self, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x[:, 0, 0, :4] + self.shift


X = randn(7, 3, 2, 4, dtype=torch.float32)


def test_it_is_the_mean_of_p_log_p_over_q():
    found, expected = Answers(Logits(), X).divergence(Logits(0.3)), 0.0
    for row in X[:, 0, 0].double().tolist():
        p = [math.exp(v) / sum(map(math.exp, row)) for v in row]
        q = [math.exp(0.3 * v) / sum(math.exp(0.3 * u) for u in row) for v in row]
        expected += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / len(X)
    assert found == pytest.approx(expected, rel=1e-6)
    assert expected > 0.01


def test_two_answers_by_hand():
    """p = (3/4, 1/4) against q = (1/2, 1/2): 3/4·log 3/2 + 1/4·log 1/2."""

    class Two(nn.Module):
        def __init__(self, odds):
            super().__init__()
            self.odds = odds

        def forward(self, x):
            return torch.tensor([[math.log(self.odds), 0.0]]).expand(len(x), 2)

    assert Answers(Two(3), X).divergence(Two(1)) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-6)


def test_what_changes_no_probability_is_none():
    answers = Answers(Logits(), X)
    assert answers.divergence(Logits()) == 0
    assert 0 <= answers.divergence(Logits(shift=100.0)) < 1e-8


def test_far_apart_answers_are_finite():
    answers = Answers(Logits(1e4), X)
    assert 1e3 < answers.divergence(Logits(-1e4)) < math.inf


def test_answers_that_are_no_numbers():
    with pytest.raises(CompressError, match="not finite") as raised:
        Answers(Logits(), X).divergence(Logits(math.nan))
    assert "\n" not in str(raised.value)
    with pytest.raises(CompressError, match="not finite"):
        Answers(Logits(math.nan), X).divergence(Logits())


def test_large_sets_go_through_in_parts(monkeypatch):
    whole = Answers(Logits(), X).divergence(Logits(0.5))
    monkeypatch.setattr(parts, "PIXELS_ON_CPU", 3 * 8 + 1)  # three images of 2×4
    seen, forward = [], divergence.forward
    monkeypatch.setattr(divergence, "forward", lambda model, x: seen.append(len(x)) or forward(model, x))
    assert Answers(Logits(), X).divergence(Logits(0.5)) == pytest.approx(whole, rel=1e-12)
    assert seen == [3, 2, 2] * 2
    monkeypatch.setattr(parts, "PIXELS_ON_CPU", 1)
    assert [len(part) for part in parts.parts(X)] == [1] * 7


def test_networks_are_in_eval_mode_meanwhile():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.BatchNorm1d(24), nn.Linear(24, 4)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert Answers(model, X).divergence(model) == 0
    assert all(m.training for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
