import math

import pytest
import torch
from torch import nn

from cnncompress.errors import CompressError, DataError, UsageError
from cnncompress.network.device import resolve_device
from cnncompress.network.evaluate import Evaluation, evaluate, paired_error, summarise, tally


class Table(nn.Module):
    """Gives back the logits it is fed, as [n, 1, 1, classes] images."""

    def forward(self, x):
        return x.flatten(1)


def images_of(logits):
    return torch.tensor(logits, dtype=torch.float32)[:, None, None, :]


def test_accuracies_and_loss_by_hand():
    logits = [
        [9, 0, 0, 0, 0, 0, 0],  # label 0: right
        [9, 8, 7, 6, 5, 4, 3],  # label 4: fifth
        [9, 8, 7, 6, 5, 4, 3],  # label 5: sixth
        [0, 0, 0, 9, 0, 0, 0],  # label 3: right
    ]
    labels = [0, 4, 5, 3]
    batches = [(images_of(logits[:3]), torch.tensor(labels[:3])), (images_of(logits[3:]), torch.tensor(labels[3:]))]
    losses = [math.log(sum(map(math.exp, row))) - row[label] for row, label in zip(logits, labels, strict=True)]
    result = evaluate(Table(), batches, "cpu", progress=False)
    assert (result.top1, result.top5, result.images) == (50.0, 75.0, 4)
    assert result.loss == pytest.approx(sum(losses) / 4, rel=1e-12)


def test_the_standard_error_of_a_change_on_the_same_images():
    """Two of four images are lost: changes 0, -1, 0, -1 have the variance 1/4, and their mean a 4th of it."""
    labels = torch.zeros(4, dtype=torch.int64)
    right, wrong = [1, 0], [0, 1]
    before, after = (
        evaluate(Table(), [(images_of(logits[:3]), labels[:3]), (images_of(logits[3:]), labels[3:])], progress=False)
        for logits in ([right, right, wrong, right], [right, wrong, wrong, wrong])
    )
    assert paired_error(before, after) == pytest.approx(25.0)
    assert paired_error(before, before) == 0
    assert paired_error(before, None) is None
    assert paired_error(before, Evaluation(50.0, 50.0, 1.0, 4)) is None


def test_top5_of_fewer_classes_counts_all_of_them():
    result = evaluate(Table(), [(images_of([[1, 2, 3], [3, 2, 1]]), torch.tensor([0, 0]))], progress=False)
    assert (result.top1, result.top5) == (50.0, 100.0)


def test_sums_of_parts_add_up_to_the_whole():
    images, labels = torch.randn(10, 1, 1, 6), torch.arange(10) % 6
    parts = [tally(Table(), [(images[i::2], labels[i::2])], torch.device("cpu"), progress=False) for i in (0, 1)]
    whole = tally(Table(), [(images, labels)], torch.device("cpu"), progress=False)
    assert torch.allclose(parts[0] + parts[1], whole, rtol=1e-12)
    assert summarise(whole) == Evaluation(*(100 * whole[:2] / 10).tolist(), whole[2].item() / 10, 10)


def test_eval_mode_during_and_the_own_modes_after():
    seen = []
    model = nn.Sequential(Table(), nn.Dropout(), nn.ReLU())
    model.train()
    model[1].eval()
    model[0].register_forward_hook(lambda *_: seen.append([m.training for m in model.modules()]))
    evaluate(model, [(images_of([[1, 2]]), torch.tensor([1]))], progress=False)
    assert seen == [[False] * 4]
    assert [m.training for m in model.modules()] == [True, True, False, True]


def test_tuples_of_logits_and_auxiliary_heads():
    class Two(nn.Module):
        def forward(self, x):
            return x.flatten(1), None

    assert evaluate(Two(), [(images_of([[1, 2]]), torch.tensor([1]))], progress=False).top1 == 100.0


@pytest.mark.parametrize("label", [2, -1])
def test_labels_the_network_lacks(label):
    with pytest.raises(DataError, match=rf"class index {label} .* 2 outputs"):
        evaluate(Table(), [(images_of([[1, 2]]), torch.tensor([label]))], progress=False)


def test_no_images():
    with pytest.raises(DataError, match="no images"):
        evaluate(Table(), [], progress=False)


@pytest.mark.parametrize("network", [nn.Flatten(0), nn.Flatten(1), nn.Identity()])
def test_a_single_number_is_no_score_of_classes_but_can_be_made_one(network):
    x = torch.tensor([-1.0, 2.0])
    images, labels = x[:, None, None, None], (x > 0).long()
    with pytest.raises(CompressError, match="one number an image, not scores of classes, so there is no accuracy"):
        evaluate(network, [(images, labels)], progress=False)
    two = torch.stack([torch.zeros_like(x), x], 1)  # the remedy: softmax of [0, x] is sigmoid of x for the second class
    result = evaluate(Table(), [(two[:, None, None, :], labels)], progress=False)
    assert result.top1 == 100
    assert result.loss == pytest.approx(-float(x.double().abs().sigmoid().log().mean()))


def test_output_that_is_not_logits():
    with pytest.raises(CompressError, match="4 dimensions"):
        evaluate(nn.Identity(), [(images_of([[1, 2]]), torch.tensor([1]))], progress=False)


def test_devices(monkeypatch):
    assert resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(CompressError, match="--device cpu"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("cuda")
    for name in ("gpu", "meta"):
        with pytest.raises(UsageError, match="auto, cpu or cuda"):
            resolve_device(name)
