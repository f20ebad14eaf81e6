"""The cascade: what it decomposes, from which weights, by which statistics, and what it trains and freezes."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import cnncompress as cc
from cnncompress.errors import UsageError
from cnncompress.finetuning.distillation import Teacher
from cnncompress.finetuning.trainer import Trainer
from cnncompress.network.evaluate import Evaluation
from tests.finetuning.cascades import (
    CONVOLUTIONS,
    VAL,
    images,
    original,
    plan_of,
    settings,
    small_of,
    statistics_of,
    tune,
    watch,
)
from tests.finetuning.toy import Toy, assert_same, state_of
from tests.finetuning.toy import tune as tune_plainly


def alone(network, plan, name, metric):
    """The network with one more layer of a plan decomposed, by the public functions alone."""
    part = cc.Plan({name: plan.layers[name]}, metric=metric)
    return cc.decompose(network, part, statistics=statistics_of(network, metric, [name]), progress=False)


def together(network, plan, names, metric):
    """The network with several more layers of a plan decomposed and corrected, by the public functions alone."""
    part = cc.Plan({name: plan.layers[name] for name in names}, metric=metric)
    options = {"statistics": statistics_of(network, metric, names), "correction": cc.Correction(seed=5)}
    return cc.decompose_in_order(network, part, images(), **options, progress=False)


@pytest.mark.parametrize("metric", ["frobenius", "data-covariance", "kronecker"])
def test_every_layer_is_decomposed_from_the_weights_that_were_trained_before(tmp_path, monkeypatch, metric):
    network, seen = original(), watch(monkeypatch)
    before, small = state_of(network), small_of(network, metric)
    result = tune(tmp_path, small, network, epochs=1)
    assert [name for name, *_ in seen] == list(CONVOLUTIONS)
    assert_same(state_of(network), before)
    for i, (name, given, _, after) in enumerate(seen):
        weight = given.get_submodule(name).weight
        assert torch.equal(weight, before[f"{name}.weight"]) == (i == 0)
        expected = alone(given, plan_of(network, metric), name, metric)
        assert_same(state_of(after), state_of(expected))
        assert_same(state_of(small.get_submodule(name)), state_of(expected.get_submodule(name)))
        assert result.errors[name] == expected.cnncompress.errors[name]


def test_statistics_come_through_the_compressed_layers_below(tmp_path, monkeypatch):
    seen, small = watch(monkeypatch), small_of(original())
    tune(tmp_path, small, epochs=1)
    for name, _, statistics, _ in seen[1:]:
        assert statistics.keys() == {name}
        with torch.no_grad():
            inputs = small[: int(name)](images())  # what is below is frozen: it is now what it was then
            plain = original()[: int(name)](images())
        patches = F.unfold(inputs, 3, padding=1).transpose(1, 2).reshape(-1, 72).double()
        found = statistics[name]
        assert torch.allclose(found.mean[0].double(), patches.mean(0), atol=1e-4)
        centred = patches - patches.mean(0)
        assert torch.allclose(found.moment[0].double(), centred.T @ centred / len(patches), atol=1e-3)
        assert (inputs - plain).abs().max() > 0.1


def test_what_is_below_stays_and_what_is_above_is_trained(tmp_path, monkeypatch):
    seen, small = watch(monkeypatch), small_of(original())
    tune(tmp_path, small, epochs=1, freeze_bn=False)
    givens = [given for _, given, _, _ in seen[1:]] + [small]
    for (name, _, _, decomposed), trained in zip(seen, givens, strict=True):
        for key, value in state_of(decomposed).items():
            below = int(key.partition(".")[0]) <= int(name)
            assert torch.equal(value, trained.state_dict()[key]) == below, (name, key)


@pytest.mark.few(1)
@pytest.mark.parametrize("group", [1, 2, 3, 7])
@pytest.mark.parametrize("metric", ["frobenius", "kronecker"])
def test_without_epochs_it_is_one_decomposition_after_the_other(tmp_path, group, metric):
    network, small = original(), small_of(original(), metric)
    plan, expected = plan_of(network, metric), network
    groups = [CONVOLUTIONS[i : i + group] for i in range(0, 3, group)]
    for names in groups:
        if metric == "frobenius" or len(names) == 1:
            for name in names:
                expected = alone(expected, plan, name, metric)
        else:
            expected = together(expected, plan, names, metric)
    result = tune(tmp_path, small, network, schedule=f"cascade:group={group}", epochs=0)
    assert_same(state_of(small), state_of(expected))
    assert [step.layers for step in result.steps] == groups
    assert result.errors == {name: expected.cnncompress.errors[name] for name in CONVOLUTIONS}
    assert [row["epoch"] for row in result.history] == [0] * (1 + len(result.steps))
    assert not list((tmp_path / "checkpoints").glob("*"))


def test_layers_of_a_group_make_up_for_each_other(tmp_path):
    """Fitted together they come nearer to what the network gave before the step than fitted one after the other."""
    network, errors = original(), {}
    with torch.no_grad():
        wanted = network[:9](images())
        for group in (1, 3):
            small = small_of(network)
            tune(tmp_path, small, network, schedule=f"cascade:group={group}", epochs=0)
            errors[group] = float((small[:9](images()) - wanted).square().mean())
    assert errors[3] < 0.9 * errors[1]


def test_steps_history_and_accuracies_belong_together(tmp_path):
    network, small = original(), small_of(original())
    result = tune(tmp_path, small, network)
    before, after = (cc.evaluate(x, cc.make_loader(VAL, 8), progress=False) for x in (network, small))
    assert result.history[0]["val_top1"] == before.top1
    assert (result.best, result.best_epoch) == (after, 3)
    assert [row["cascade_step"] for row in result.history] == [0, *3 * [1], *3 * [2], *3 * [3]]
    before = result.history[0]["val_top1"]
    for number, step in enumerate(result.steps, 1):
        rows = [row for row in result.history if row["cascade_step"] == number]
        assert [row["layers"] for row in rows] == [[CONVOLUTIONS[number - 1]]] * 3
        assert step.words == f"{CONVOLUTIONS[number - 1]}, spatial-svd rank 2"
        assert (step.before.top1, step.decomposed.top1) == (before, rows[0]["val_top1"])
        assert step.tuned.top1 == max(row["val_top1"] for row in rows)
        assert step.epochs == 2
        before = step.tuned.top1
        assert rows[1]["lr"] == result.history[2]["lr"] > rows[2]["lr"]  # the cosine begins anew


def test_no_step_sees_the_order_of_another(tmp_path):
    train, orders = Toy(), {}
    train.on_item = lambda epoch, index: orders.setdefault(epoch, []).append(index)
    tune(tmp_path, small_of(original()), train=train)
    assert orders.keys() == set(range(7))
    assert orders.pop(0) == 3 * list(range(48))  # of the statistics
    assert all(sorted(order) == list(range(48)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 6


def test_few_images_for_statistics_are_spread_evenly(tmp_path):
    train, seen = Toy(), []
    train.on_item = lambda epoch, index: seen.append((epoch, index))
    tune(tmp_path, small_of(original()), train=train, epochs=0, calibration_images=4)
    assert seen == 3 * [(0, 0), (0, 15), (0, 31), (0, 47)]


def test_steps_that_are_near_enough_train_nothing(tmp_path):
    small = small_of(original())
    result = tune(tmp_path, small, until_drop=99)
    assert [step.epochs for step in result.steps] == [0, 0, 0]
    assert result.note == ""
    again = small_of(original())
    tune(tmp_path / "plain", again, epochs=0)
    assert_same(state_of(small), state_of(again))


def scripted(monkeypatch, *accuracies):
    """Have the validations of trainings tell these percentages."""
    original()  # which is trained once, and in earnest
    told = iter(accuracies)
    monkeypatch.setattr(Trainer, "_validate", lambda self: Evaluation(next(told), 100, 1.0, 24))


def test_a_step_ends_once_the_accuracy_is_restored(tmp_path, monkeypatch):
    monkeypatch.setattr("cnncompress.finetuning.session.Session.validated", lambda *_: Evaluation(90.0, 100, 1.0, 24))
    scripted(monkeypatch, 50, 88, 89, *(89.5,), *(10, 20, 30, 40))
    result = tune(tmp_path, small_of(original()), epochs=3, until_drop=1.0)
    assert [step.epochs for step in result.steps] == [2, 0, 3]
    assert [step.tuned.top1 for step in result.steps] == [89, 89.5, 40]
    assert "top-1 was not within 1 point of the original's after step 3" in result.note
    assert "nothing better than the network was, whose weights are kept" in result.note


@pytest.mark.parametrize(
    ("accuracies", "epochs", "note"),
    [
        ([50, 60, 80], 2, "top-1 is within 1.5 points of the original's after epoch 2 of 5"),
        ([79], 0, "top-1 was within 1.5 points of the original's before training"),
        ([10, 20, 30, 40, 50, 60], 5, ""),
    ],
)
def test_a_plain_training_ends_too(tmp_path, monkeypatch, accuracies, epochs, note):
    monkeypatch.setattr("cnncompress.finetuning.session.Session.validated", lambda *_: Evaluation(80.5, 100, 1.0, 24))
    for resume in (False, True):
        if not resume:
            scripted(monkeypatch, *accuracies)
        chosen = {"schedule": "all", "epochs": 5, "until_drop": 1.5}
        result = tune(tmp_path, small_of(original()), resume=resume, **chosen)
        assert (len(result.history) - 1, result.best.top1) == (epochs, accuracies[-1])
        assert result.note.startswith(note)
        assert bool(result.note) == bool(note)


def test_what_nothing_is_above_is_decomposed_only(tmp_path):
    network = original()
    plan = plan_of(network)
    plan.layers |= cc.plan(network, images()[:1], method="svd", rank=1, layers=["12"]).layers
    small = cc.decompose(network, plan, statistics=statistics_of(network, plan.metric), progress=False)
    with torch.no_grad():
        small[12][1].weight.zero_()
    result = tune(tmp_path, small, network, epochs=1)
    assert [step.epochs for step in result.steps] == [1, 1, 1, 0]
    assert "nothing is left to train above the layers of step 4" in result.note
    assert result.history[-1]["layers"] == ["12"]
    state, again = state_of(small), small_of(network)
    again = cc.decompose(network, plan, statistics=statistics_of(network, plan.metric), progress=False)
    with torch.no_grad():
        again[12][1].weight.zero_()
    assert tune(tmp_path, again, network, epochs=1, resume=True).best == result.best
    assert_same(state_of(again), state)


def test_a_network_that_was_better_keeps_its_weights(tmp_path):
    statistics = statistics_of(original(), "data-covariance")
    small = cc.decompose(original(), plan_of(original(), rank=6), statistics=statistics, progress=False)
    tune_plainly(tmp_path / "before", small, epochs=3)
    before = state_of(small)
    result = tune(tmp_path, small, epochs=1, lr=1e-9)
    assert result.best_epoch == 0
    assert result.best == result.start
    assert len(result.steps) == 3
    assert_same(state_of(small), before)
    assert result.errors == {}


def test_it_learns_from_the_original(tmp_path, monkeypatch):
    seen, answers = set(), Teacher.answers
    monkeypatch.setattr(Teacher, "answers", lambda self, x: seen.add(self.network) or answers(self, x))
    network = original()
    result = tune(tmp_path, small_of(network), network, epochs=1, distill="logits")
    assert seen == {network}
    plain = tune(tmp_path, small_of(network), network, epochs=1)
    assert result.history[2]["train_loss"] != plain.history[2]["train_loss"]


def test_half_precision(tmp_path):
    network = original().bfloat16()
    small = cc.decompose(network, plan_of(original(), "frobenius"), progress=False)
    with torch.no_grad():
        small[-1].weight.zero_()
    result = tune(tmp_path, small, network, epochs=1)
    assert {t.dtype for t in small.parameters()} == {torch.bfloat16}
    assert "trained in float32 and rounded to bfloat16" in result.note
    assert result.best == cc.evaluate(small, cc.make_loader(VAL, 8), progress=False)


@pytest.mark.slow
def test_from_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = original()
    small = cc.compress(network, images(), cc.Budget(macs=0.6), allow_slower=True)
    result = cc.finetune(small, Toy(), VAL, settings(epochs=1, distill="logits"), device="cpu", original=network)
    assert [step.layers for step in result.steps] == [(name,) for name in small.plan.layers]
    assert result.errors.items() <= small.provenance.errors.items()
    assert not any(tmp_path.iterdir())


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.shared, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.shared(self.shared(self.first(x)).relu()).mean((2, 3)))


def of_plan(network, plan):
    return cc.decompose(network, plan, progress=False)


def test_plans_that_have_no_steps(tmp_path):
    wide = original()
    wide[4] = nn.Conv2d(8, 8, 5, padding=2, bias=False)
    nested = of_plan(original(), plan_of(original(), "frobenius", layers=["4"]))
    inner = cc.plan(nested, images()[:1], method="channel-svd", rank=1, layers=["4.0"], force=True)
    selected = cc.plan(original(), images()[:1], method="select", rank=0.5)
    headless = small_of(original(), "frobenius")
    headless[-1] = nn.Linear(128, 3, bias=False)
    cases = [
        (of_plan(Twice(), plan_of(Twice(), "frobenius")), Twice(), "cannot take shared: the network calls it 2 times"),
        (of_plan(nested, inner), original(), r"cannot take 4\.0: it is a part of the chain of 4; give --schedule all"),
        (of_plan(original(), selected), original(), r"cannot take 0 alone: .* fewer channels \(select\); give"),
        (small_of(original(), "frobenius"), wide, "4 is 5×5 8→8 in the original and 3×3 8→8 in the plan"),
        (headless, original(), r"12\.bias differs; give its original"),
        (original(), original(), "needs decomposed layers, and the network has none"),
    ]
    for small, network, words in cases:
        with pytest.raises(UsageError, match=words) as caught:
            tune(tmp_path, small, network)
        assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_a_cascade_needs_the_original(tmp_path):
    for changes, words in (({}, "a cascade needs"), ({"schedule": "all", "until_drop": 1}, "until_drop needs")):
        with pytest.raises(UsageError, match=words):
            cc.finetune(small_of(original()), Toy(), VAL, settings(**changes), device="cpu")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schedule": "cascades"}, "did you mean 'cascade'"),
        ({"schedule": "cascade:group=0"}, "as in cascade:group=3"),
        ({"schedule": "cascade:size=2"}, "as in cascade:group=3"),
        ({"schedule": "cascade:"}, "as in cascade:group=3"),
        ({"schedule": "all:group=2"}, "all and upper take no options"),
        ({"schedule": "all", "epochs": 0}, "epochs 0 is out of range"),
        ({"epochs": -1}, "epochs -1 is out of range"),
        ({"until_drop": -0.5}, "until_drop -0.5 is out of range"),
        ({"calibration_images": 0}, "calibration_images 0 is out of range"),
    ],
)
def test_settings_that_make_no_sense(changes, words):
    with pytest.raises(UsageError, match=words):
        settings(**changes)


def test_the_original_is_not_touched(tmp_path):
    network = original().train()
    before, flags = state_of(network), [p.requires_grad for p in network.parameters()]
    tune(tmp_path, small_of(copy.deepcopy(network).eval()), network, epochs=1)
    assert_same(state_of(network), before)
    assert network.training
    assert [p.requires_grad for p in network.parameters()] == flags
