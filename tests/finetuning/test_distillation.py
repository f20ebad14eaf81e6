import math

import pytest
import torch
from torch import nn

import cnncompress as cc
from cnncompress.errors import CompressError, UsageError
from cnncompress.finetuning import FinetuneSettings, Lessons, finetune
from cnncompress.finetuning.distillation import Teacher, distillation_loss
from cnncompress.finetuning.passes import Passes
from cnncompress.finetuning.validation import validated
from cnncompress.network import parts
from tests.finetuning.toy import Toy, assert_same, history_of, network, settings, state_of, tune

DISTIL = {"distill": "logits"}


def teacher_network():
    """A network in train mode, whose dropout and batch normalisation would show there."""
    torch.manual_seed(8)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, 3))


def taught(tmp_path, model, teacher, train=None, resume=False, **changes):
    torch.set_num_threads(1)
    chosen = settings(**DISTIL, **changes)
    place = tmp_path / "checkpoints"
    val = Toy(24, seed=1)
    return finetune(model, Lessons(train or Toy(), val, teacher), chosen, place, device="cpu", resume=resume)


def test_the_loss_by_hand():
    # p = (3/4, 1/4) and q = (1/2, 1/2) at temperature 2, twice
    expected, found = torch.tensor([[2 * math.log(3), 0.0]] * 2), torch.zeros(2, 2)
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(distillation_loss(found, expected, 2.0)) == pytest.approx(2 * 4 * divergence, rel=1e-5)
    assert float(cc.distillation_loss(expected, expected)) == pytest.approx(0, abs=1e-6)


def test_one_step_of_sgd_by_hand(tmp_path):
    torch.manual_seed(0)
    model, teacher = (nn.Sequential(nn.Flatten(), nn.Linear(192, 3)) for _ in range(2))
    train = Toy(6)
    train.set_epoch(1)
    x, labels = torch.stack([train[i][0] for i in range(6)]).flatten(1), torch.tensor(train.labels)
    weight, bias = model[1].weight.detach().clone(), model[1].bias.detach().clone()
    answers, expected = x @ weight.T + bias, x @ teacher[1].weight.detach().T + teacher[1].bias.detach()
    to_labels = torch.softmax(answers, 1) - nn.functional.one_hot(labels, 3)
    # T² times the derivative 1/T (q - p) of the divergence by the logits
    to_teacher = 3 * (torch.softmax(answers / 3, 1) - torch.softmax(expected / 3, 1))
    error = (0.25 * to_labels + 0.75 * to_teacher) / 6
    changes = {"epochs": 1, "lr": 0.1, "weight_decay": 0.0, "batch_size": 6, "temperature": 3.0, "teacher_share": 0.75}
    taught(tmp_path, model, teacher, train, **changes)
    last = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)["model"]
    assert torch.allclose(last["1.weight"], weight - 0.1 * error.T @ x, atol=1e-6)
    assert torch.allclose(last["1.bias"], bias - 0.1 * error.sum(0), atol=1e-6)


def test_the_teacher_sees_the_batches_of_the_network_and_stays_as_it_is(tmp_path):
    seen, teacher = {"teacher": [], "network": []}, teacher_network().train()
    model, before = network(), state_of(teacher)
    teacher.register_forward_pre_hook(lambda module, args: seen["teacher"].append(args[0].clone()))
    model.register_forward_pre_hook(lambda m, args: seen["network"].append(args[0].clone()) if m.training else None)
    taught(tmp_path, model, teacher)
    answered = [batch for batch in seen["teacher"] if len(batch) == 8]
    assert len(answered) == len(seen["network"]) == 12
    assert all(torch.equal(a, b) for a, b in zip(answered, seen["network"], strict=True))
    assert_same(before, state_of(teacher))
    assert all(module.training for module in teacher.modules())
    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())


def test_without_gradients_images_go_through_a_few_at_a_time(monkeypatch):
    teacher = Teacher(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval())
    teacher.passes, sizes = Passes(teacher.network, ("0", "1")), []
    teacher.network.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    images = torch.randn(7, 3, 8, 8)
    whole = teacher.answers(images)
    assert sizes == [7]
    assert [x.shape for x in whole.maps] == [(7, 36)] * 2
    monkeypatch.setattr(parts, "PIXELS_ON_CPU", 4 * 64)
    found = teacher.answers(images)
    assert sizes[1:] == [4, 3]
    torch.testing.assert_close([found.logits, *found.maps], [whole.logits, *whole.maps])
    sizes.clear()
    validated(teacher.network, Toy(8), None, settings(batch_size=5), torch.device("cpu"), images[:1])
    assert sizes == [4, 4]


def test_with_the_whole_loss_labels_teach_nothing(tmp_path):
    wrong = Toy()
    wrong.labels = [(label + 1) % 3 for label in wrong.labels]
    for name, train in (("right", Toy()), ("wrong", wrong)):
        taught(tmp_path / name, network(), teacher_network(), train, epochs=1, teacher_share=1.0)
    right, wrong = (torch.load(tmp_path / x / "checkpoints" / "last.pt", weights_only=True) for x in ("right", "wrong"))
    assert_same(right["model"], wrong["model"])


def test_a_network_comes_near_its_teacher(tmp_path):
    teacher, model = network(), network()
    tune(tmp_path / "teacher", teacher, epochs=4)
    images = torch.stack([Toy(24, seed=1)[i][0] for i in range(24)])

    def distance():
        with torch.no_grad():
            return float(distillation_loss(model(images), teacher(images)))

    far = distance()
    taught(tmp_path / "model", model, teacher, epochs=4, teacher_share=1.0)
    assert distance() < far / 2


def test_resuming_gives_the_bits_of_an_uninterrupted_training(tmp_path):
    def interrupt(epoch, index, seen=[]):  # noqa: B006
        seen.append(index)
        if len(seen) == 48 + 21:
            raise KeyboardInterrupt

    straight, resumed, train = network(), network(), Toy()
    train.on_item = interrupt
    expected = taught(tmp_path / "a", straight, teacher_network())
    with pytest.raises(KeyboardInterrupt):
        taught(tmp_path / "b", network(), teacher_network(), train)
    state = torch.load(tmp_path / "b" / "checkpoints" / "last.pt", weights_only=True)
    assert (state["epoch"], state["step"]) == (2, 2)
    torch.manual_seed(12345)
    result = taught(tmp_path / "b", resumed, teacher_network(), resume=True)
    assert_same(state_of(straight), state_of(resumed))
    assert history_of(result) == history_of(expected)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temperature": 5.0}, "temperature was 4.0, now 5.0"),
        ({"teacher_share": 0.5}, "teacher_share was 0.9, now 0.5"),
        ({}, "the teacher's weights was "),
    ],
)
def test_resuming_with_another_teacher_is_refused(changes, words, tmp_path):
    taught(tmp_path, network(), teacher_network(), epochs=1)
    teacher = teacher_network()
    with torch.no_grad():
        teacher[4].bias += 1
    with pytest.raises(UsageError, match=words):
        taught(tmp_path, network(), teacher if not changes else teacher_network(), epochs=1, resume=True, **changes)
    with pytest.raises(UsageError, match="distill was logits, now none"):
        tune(tmp_path, network(), epochs=1, resume=True)


def test_a_training_from_before_there_was_distillation_goes_on(tmp_path):
    expected = tune(tmp_path, network(), epochs=1)
    path = tmp_path / "checkpoints" / "last.pt"
    state = torch.load(path, weights_only=True)
    for key in ("distill", "temperature", "teacher_share"):
        del state["settings"][key]
    torch.save(state, path)
    assert tune(tmp_path, network(), epochs=1, resume=True) == expected
    with pytest.raises(UsageError, match="distill was none, now logits"):
        taught(tmp_path, network(), teacher_network(), epochs=1, resume=True)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"distill": "logit"}, "unknown distill 'logit'; did you mean 'logits'"),
        ({"temperature": 4.0}, "temperature is for distillation: give --distill logits"),
        ({"teacher_share": 0.5}, "teacher_share is for distillation"),
        ({**DISTIL, "temperature": 0.0}, "temperature 0.0 makes no sense"),
        ({**DISTIL, "temperature": math.inf}, "temperature inf makes no sense"),
        ({**DISTIL, "teacher_share": 0.0}, "teacher_share 0.0 is out of range"),
        ({**DISTIL, "teacher_share": 1.5}, "teacher_share 1.5 is out of range"),
    ],
)
def test_settings_that_make_no_sense(changes, reason):
    with pytest.raises(UsageError, match=reason) as caught:
        FinetuneSettings(**changes)
    assert "\n" not in str(caught.value)


def test_defaults_are_filled_in_where_there_is_a_teacher():
    cpu = torch.device("cpu")
    plain, distilled = FinetuneSettings().resolved(cpu), FinetuneSettings(**DISTIL).resolved(cpu)
    assert (plain.temperature, plain.teacher_share) == (None, None)
    assert (distilled.temperature, distilled.teacher_share) == (4.0, 0.9)


def test_teachers_that_do_not_fit(tmp_path):
    nan = teacher_network()
    with torch.no_grad():
        nan[4].bias.fill_(math.nan)
    shared = network()
    cases = [
        (network(), None, UsageError, r"needs a teacher: give finetune\(\.\.\., teacher=NETWORK\)"),
        (network(), nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), UsageError, "gives 5 numbers .* the network 3"),
        (network(), nan, CompressError, "the teacher's answers are not finite"),
        (network(), nn.Sequential(nn.Flatten(), nn.Linear(100, 3)), CompressError, "fails on an input of 1×3×8×8"),
        (shared, shared, UsageError, "shares weights with the network that is trained"),
        (shared, nn.Sequential(shared), UsageError, "shares weights with the network that is trained"),
    ]
    for model, teacher, kind, words in cases:
        with pytest.raises(kind, match=words) as caught:
            taught(tmp_path, model, teacher)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=r'give FinetuneSettings\(distill="logits"\)'):
        finetune(network(), Lessons(Toy(), Toy(), teacher_network()), settings(), tmp_path, device="cpu")
    assert not any(tmp_path.iterdir())


def test_bf16_and_a_teacher_in_half_precision(tmp_path):
    teacher, model = teacher_network().bfloat16(), network()
    assert taught(tmp_path, model, teacher, epochs=1, precision="bf16").history[1]["train_loss"] > 0
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.dtype for p in teacher.parameters()} == {torch.bfloat16}


def test_from_python_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = cc.finetune(
        network(), Toy(), Toy(24, seed=1), settings(**DISTIL, epochs=1), device="cpu", teacher=teacher_network()
    )
    assert result.history[1]["train_loss"] > 0
    with pytest.raises(UsageError, match="resume needs the folder"):
        cc.finetune(network(), Toy(), Toy(), settings(**DISTIL), resume=True, teacher=teacher_network())
    assert not any(tmp_path.iterdir())
