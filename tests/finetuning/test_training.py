import dataclasses
import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from cnncompress.errors import DataError, UsageError
from cnncompress.finetuning import FinetuneSettings, Lessons, finetune
from cnncompress.finetuning.optimization import better, make_optimizer
from cnncompress.network.evaluate import Evaluation
from tests.finetuning.toy import (
    Auxiliary,
    Toy,
    assert_same,
    network,
    settings,
    state_of,
    tune,
)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_learns_and_keeps_the_best(tmp_path, optimizer):
    model = network()
    result = tune(tmp_path, model, epochs=4, optimizer=optimizer, lr=None if optimizer == "sgd" else 0.01)
    assert result.best.top1 >= 90 > result.start.top1
    assert [row["epoch"] for row in result.history] == [0, 1, 2, 3, 4]
    assert [row["step"] for row in result.history] == [0, 6, 12, 18, 24]
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result.history
    assert result.best.top1 == max(row["val_top1"] for row in result.history)
    assert result.history[result.best_epoch]["val_loss"] == result.best.loss
    assert_same(state_of(model), load_file(tmp_path / "checkpoints" / "best.safetensors"))
    assert not model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "best.safetensors",
        "last.pt",
        "previous.pt",
    ]


def test_the_learning_rates_are_a_half_cosine_after_a_warm_up(tmp_path):
    result = tune(tmp_path, network(), lr=0.04)
    # Epoch e ends with step 6 e - 1 of 12, counted from 0; the first step has half the rate.
    expected = [0.02 * (1 + math.cos(math.pi * (step - 1) / 11)) for step in (5, 11)]
    assert [row["lr"] for row in result.history[1:]] == pytest.approx(expected, rel=1e-12)
    assert result.lr == 0.04


@pytest.mark.parametrize(("images", "each"), [(16, 16), (20, 16), (5, 5), (1000, 48)])
def test_an_epoch_of_some_of_the_images(tmp_path, images, each):
    """48 images in batches of 8, or of as many as there are."""
    train, seen = Toy(48), {1: [], 2: []}
    train.on_item = lambda epoch, index: seen[epoch].append(index)
    result = tune(tmp_path, network(), train, images_per_epoch=images, epochs=2)
    assert [len(set(seen[epoch])) for epoch in (1, 2)] == [len(seen[1]), len(seen[2])] == [each, each]
    assert result.history[-1]["step"] == 2 * max(1, each // 8)
    assert each == 48 or set(seen[1]) != set(seen[2])


def test_one_step_of_sgd_by_hand(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    train = Toy(6)
    train.set_epoch(1)
    images, labels = torch.stack([train[i][0] for i in range(6)]), torch.tensor(train.labels)
    weight, bias = model[1].weight.detach().clone(), model[1].bias.detach().clone()
    x = images.flatten(1)
    error = (torch.softmax(x @ weight.T + bias, 1) - nn.functional.one_hot(labels, 3)) / 6
    tune(tmp_path, model, train, epochs=1, lr=0.1, weight_decay=0.01, batch_size=6)
    last = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)["model"]
    assert torch.allclose(last["1.weight"], weight - 0.1 * (error.T @ x + 0.01 * weight), atol=1e-6)
    assert torch.allclose(last["1.bias"], bias - 0.1 * error.sum(0), atol=1e-6)


def test_no_weight_decay_on_biases_and_normalisation():
    model = network()
    optimizer = make_optimizer(model, FinetuneSettings().resolved(torch.device("cpu")))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert all(decays[id(p)] == (1e-4 if p.dim() > 1 else 0) for p in model.parameters())


def test_a_training_that_helps_nothing_gives_back_the_start(tmp_path):
    model = network()
    tune(tmp_path / "first", model, epochs=4)
    before = state_of(model)
    result = tune(tmp_path / "second", model, Toy(noise=30.0), lr=0.5, epochs=1)
    assert result.best_epoch == 0
    assert result.best == result.start != result.last
    assert "no epoch was better than the start" in result.note
    assert_same(before, state_of(model))


def test_better_compares_top1_then_loss():
    base = Evaluation(80.0, 90.0, 1.0, 10)
    assert better(dataclasses.replace(base, top1=81.0, loss=2.0), base)
    assert better(dataclasses.replace(base, loss=0.9), base)
    assert not better(base, base)
    assert not better(dataclasses.replace(base, top1=79.0, loss=0.1), base)
    assert not better(dataclasses.replace(base, top1=99.0, loss=math.nan), base)
    assert better(base, dataclasses.replace(base, top1=99.0, loss=math.nan))


def test_labels_the_network_lacks(tmp_path):
    train = Toy()
    train.labels[7] = 3
    with pytest.raises(DataError, match="class index 3 is not one of the network's 3 outputs"):
        tune(tmp_path, network(), train)


def test_errors_of_worker_processes_are_one_line(tmp_path):
    train = Toy()

    def on_item(epoch, index):
        raise DataError("none of the 48 training images can be read")

    train.on_item = on_item
    with pytest.raises(DataError) as caught:
        tune(tmp_path, network(), train, workers=1)
    assert str(caught.value) == "none of the 48 training images can be read"


@pytest.mark.slow
def test_workers_do_not_change_the_result(tmp_path):
    a, b = network(), network()
    tune(tmp_path / "a", a, epochs=1)
    tune(tmp_path / "b", b, epochs=1, workers=2)
    assert_same(state_of(a), state_of(b))


def test_a_set_smaller_than_a_batch_is_one_batch(tmp_path):
    result = tune(tmp_path, network(), Toy(5), epochs=1)
    assert result.history[1]["step"] == 1


def test_no_images(tmp_path):
    train = Toy()
    train.labels = []
    with pytest.raises(DataError, match="no images to train on"):
        finetune(network(), Lessons(train, Toy()), settings(), tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schedule": "al"}, "unknown schedule 'al'; did you mean 'all'"),
        ({"optimizer": "adam"}, "unknown optimizer 'adam'; did you mean 'adamw'"),
        ({"precision": "fp8"}, "unknown precision"),
        ({"epochs": 0}, "epochs 0 is out of range"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"lr": 0.0}, "lr 0.0 makes no sense"),
        ({"lr": math.nan}, "lr nan makes no sense"),
        ({"momentum": 1.0}, "momentum 1.0"),
        ({"weight_decay": -1.0}, "weight_decay -1.0"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_settings_that_make_no_sense(changes, reason):
    with pytest.raises(UsageError, match=reason):
        FinetuneSettings(**changes)


def test_precisions():
    cpu = torch.device("cpu")
    assert FinetuneSettings().resolved(cpu).precision == "fp32"
    assert FinetuneSettings(precision="bf16").resolved(cpu).precision == "bf16"
    with pytest.raises(UsageError, match="fp16 training needs a GPU"):
        FinetuneSettings(precision="fp16").resolved(cpu)


def test_bf16_trains_on_a_cpu_and_leaves_the_network_in_fp32(tmp_path):
    model = network()
    result = tune(tmp_path, model, epochs=4, precision="bf16")
    assert result.best.top1 >= 90
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert "forward" not in vars(model)
    tune(tmp_path / "again", model, epochs=1)  # another precision in the same process


@pytest.mark.slow
def test_auxiliary_heads_are_left_alone(tmp_path):
    model = Auxiliary()
    before = state_of(model)
    assert tune(tmp_path, model).best_epoch > 0
    after = state_of(model)
    assert torch.equal(before["aux.weight"], after["aux.weight"])
    assert not torch.equal(before["body.weight"], after["body.weight"])
