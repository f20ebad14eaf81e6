"""Attention transfer, by hand and in a training."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import cnncompress as cc
from cnncompress.errors import UsageError
from cnncompress.finetuning import FinetuneSettings, Lessons, finetune
from cnncompress.finetuning.attention import attention, attention_loss, places, watched
from cnncompress.finetuning.distillation import Answers
from cnncompress.finetuning.optimization import Objective
from cnncompress.finetuning.passes import Passes
from tests.finetuning.test_resume import interrupt_at, raise_interrupt
from tests.finetuning.toy import Toy, assert_same, chain, history_of, network, settings, state_of

EXAMPLE = torch.zeros(1, 3, 8, 8)


def features():
    """Two channels whose mean squares are 3 and 4 at the two positions."""
    return torch.tensor([[[[math.sqrt(6), 0.0]], [[0.0, math.sqrt(8)]]]])


def test_the_map_and_the_loss_by_hand():
    assert torch.allclose(attention(features()), torch.tensor([[0.6, 0.8]]))
    teacher = torch.tensor([[[[-2.0, 0.0]]]])  # its map is (1, 0)
    # ((1 - 0.6)² + 0.8²) / 2 for each of two images; the second pair of maps is equal
    pairs = (torch.cat([x, x]) for x in (features(), teacher))
    loss = attention_loss([next(pairs), features().repeat(2, 1, 1, 1)], [next(pairs), torch.tensor([[0.6, 0.8]] * 2)])
    assert float(loss) == pytest.approx(2 * 0.4 / 2)
    assert cc.attention_loss is attention_loss


def test_maps_that_do_not_fit():
    with pytest.raises(UsageError, match="the same images and positions"):
        attention_loss([torch.zeros(1, 2, 3, 3)], [torch.zeros(1, 2, 4, 4)])
    with pytest.raises(UsageError, match="the same images and positions"):
        attention_loss([], [])


class Groups(nn.Module):
    """Two groups of residual blocks, of which the second is half as large, with an activation called twice."""

    def __init__(self, middle):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.first = nn.Sequential(nn.Conv2d(4, 4, 1), middle)
        self.down = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.second = nn.Conv2d(4, 4, 1)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = self.relu(self.first(self.stem(x)))
        x = self.relu(self.down(x))
        return self.fc(self.pool(x + self.second(x)).flatten(1))


def test_maps_are_taken_at_the_last_module_of_each_size():
    ours, theirs = Groups(chain(4, 4, 2)), Groups(nn.Conv2d(4, 4, 3, padding=1))
    assert places(ours, theirs, EXAMPLE) == ["first", "second"]
    with watched(ours, ["first", "second"]) as found:
        ours(EXAMPLE)
    assert [tuple(x.shape) for x in found] == [(1, 4, 8, 8), (1, 4, 4, 4)]
    with pytest.raises(UsageError, match="shares no module with its teacher that gives a feature map"):
        places(ours, nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), EXAMPLE)


def test_the_objective_by_hand():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(72, 3))
    images, labels, expected = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0]), torch.randn(4, 3)
    maps = F.normalize(torch.rand(4, 36))
    chosen = FinetuneSettings(distill="logits+attention", attention_weight=50.0, temperature=1.0, teacher_share=0.25)
    with torch.no_grad():
        loss = Objective(Passes(model, ["0"]), chosen.resolved(torch.device("cpu")))(
            images, labels, Answers(expected, [maps])
        )
    energy = (model[0](images).detach() ** 2).mean(1).reshape(4, 36)
    distance = ((energy / energy.pow(2).sum(1, keepdim=True).sqrt() - maps) ** 2).mean(1).sum()
    given = model(images).detach().log_softmax(1)
    p = expected.softmax(1)
    divergence = (p * (p.log() - given)).sum()
    by_hand = 0.75 * -given[range(4), labels].sum() + 0.25 * divergence + 50 * distance
    assert float(loss) == pytest.approx(float(by_hand), rel=1e-5)


def taught(folder, model, train=None, resume=False, **changes):
    torch.set_num_threads(1)
    chosen = settings(distill="attention", **changes) if "distill" not in changes else settings(**changes)
    val, place = Toy(24, seed=1), folder / "checkpoints"
    teacher = network()
    with torch.no_grad():
        teacher[3][0].weight.add_(torch.randn(4, 8, 3, 1, generator=torch.Generator().manual_seed(4)))
    lessons = Lessons(train or Toy(), val, teacher)
    return finetune(model, lessons, chosen, place, device="cpu", resume=resume), teacher


def test_a_network_comes_to_look_where_its_teacher_does(tmp_path):
    model, untrained = network(), network()
    _, teacher = taught(tmp_path, model, epochs=3, attention_weight=3000.0)
    images = torch.stack([Toy(24, seed=1)[i][0] for i in range(24)])

    def distance(one):
        with torch.no_grad(), watched(one, ["5"]) as ours, watched(teacher, ["5"]) as theirs:
            one(images), teacher(images)
            return float(attention_loss(ours, theirs))

    last = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)["model"]
    model.load_state_dict(last)
    assert distance(model) < 0.75 * distance(untrained)


def test_resuming_gives_the_bits_of_an_uninterrupted_training(tmp_path):
    straight, resumed, chosen = network(), network(), {"distill": "logits+attention"}
    expected, _ = taught(tmp_path / "a", straight, **chosen)
    with pytest.raises(KeyboardInterrupt):
        taught(tmp_path / "b", network(), interrupt_at(Toy(), 2, 21, raise_interrupt), **chosen)
    result, _ = taught(tmp_path / "b", resumed, resume=True, **chosen)
    assert_same(state_of(straight), state_of(resumed))
    assert history_of(result) == history_of(expected)
