"""Training on images alone, and the parameters of a schedule for a loop of somebody's own."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import cnncompress as cc
from cnncompress.errors import UsageError
from cnncompress.finetuning import FinetuneSettings
from cnncompress.finetuning.optimization import better
from cnncompress.network.evaluate import Evaluation
from tests.finetuning.toy import Toy, assert_same, network, settings, state_of

ALONE = {"distill": "logits", "unlabelled": True}


class Images(Dataset):
    """The images of a set without its labels."""

    def __init__(self, labelled):
        self.labelled = labelled

    def set_epoch(self, epoch):
        self.labelled.set_epoch(epoch)

    def __len__(self):
        return len(self.labelled)

    def __getitem__(self, index):
        return self.labelled[index][0]


def other():
    """A teacher: the network with another head."""
    model = network()
    with torch.no_grad():
        model[9].weight.copy_(torch.randn(3, 128, generator=torch.Generator().manual_seed(1)))
    return model


def taught(model, train, val, **changes):
    torch.set_num_threads(1)
    return cc.finetune(model, train, val, settings(**ALONE, **changes), device="cpu", teacher=other())


def test_images_alone_teach_as_those_with_labels_and_labels_are_not_read():
    wrong, val = Toy(), Toy(24, seed=1)
    wrong.labels = [7 - label for label in wrong.labels]
    one, two = network(), network()
    first = taught(one, Images(Toy()), Images(val))
    second = taught(two, wrong, val)
    assert_same(state_of(one), state_of(two))
    assert dataclasses.replace(first, history=[]) == dataclasses.replace(second, history=[])


def test_the_result_is_the_agreement_with_the_teacher():
    model, teacher, val = network(), other(), Toy(24, seed=1)
    found = taught(model, Images(Toy()), Images(val), epochs=3)
    images = torch.stack([val[i][0] for i in range(24)])
    with torch.no_grad():
        given, expected = model(images).double().log_softmax(1), teacher(images).double().log_softmax(1)
    assert found.best.top1 == pytest.approx(100 * float((given.argmax(1) == expected.argmax(1)).double().mean()))
    assert found.best.loss == pytest.approx(float((expected.exp() * (expected - given)).sum(1).mean()), rel=1e-6)
    assert found.best.loss == min(row["val_loss"] for row in found.history) < 0.8 * found.start.loss
    assert (found.best.images, found.best.top5) == (24, 100.0)


def test_the_best_epoch_is_the_one_that_diverges_least():
    base = Evaluation(80.0, 90.0, 1.0, 10)
    assert better(dataclasses.replace(base, top1=70.0, loss=0.9), base, by_loss=True)
    assert not better(dataclasses.replace(base, top1=90.0, loss=1.1), base, by_loss=True)


def test_half_precision_is_judged_after_it_is_rounded():
    model = network().bfloat16()
    found = taught(model, Images(Toy()), Images(Toy(24, seed=1)), epochs=1)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert "rounded to bfloat16" in found.note


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"unlabelled": True}, "give --distill logits or logits.attention with it"),
        ({"unlabelled": True, "distill": "attention"}, "give --distill logits or logits.attention with it"),
        ({**ALONE, "teacher_share": 0.5}, "teacher_share is beside labels"),
        ({"distill": "attention", "teacher_share": 0.5}, "teacher_share is for distillation: give --distill logits"),
        ({**ALONE, "attention_weight": 5.0}, "attention_weight is for distillation: give --distill attention"),
        ({"distill": "attention", "attention_weight": -1.0}, "attention_weight -1.0 makes no sense"),
    ],
)
def test_settings_that_make_no_sense(changes, words):
    with pytest.raises(UsageError, match=words):
        FinetuneSettings(**changes)


def test_the_parameters_of_a_schedule_for_a_loop_of_your_own():
    model = network()
    parameters = cc.trainable(model, "upper", torch.zeros(1, 3, 8, 8))
    named = dict(model.named_parameters())
    assert [id(p) for p in parameters] == [id(named[n]) for n in ("4.weight", "4.bias", "9.weight", "9.bias")]
    assert {n for n, p in named.items() if p.requires_grad} == {"4.weight", "4.bias", "9.weight", "9.bias"}
    assert [m.training for m in model] == [False] * 4 + [True] * 6
    assert len(cc.trainable(model, example=torch.zeros(1, 3, 8, 8))) == len(named)
    loaded = cc.load_model("digits_vgg").model  # knows its own input
    assert len(cc.trainable(loaded)) == len(list(loaded.parameters()))
    with pytest.raises(UsageError, match=r"give trainable\(\.\.\., example=IMAGE\)"):
        cc.trainable(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)))
