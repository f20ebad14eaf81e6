"""What each option of a training means, by hand or beside the plain training."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cnncompress.errors import CompressError, UsageError
from cnncompress.finetuning import FinetuneSettings
from cnncompress.finetuning.averages import Average
from cnncompress.finetuning.optimization import Objective, make_optimizer
from cnncompress.finetuning.passes import Passes
from cnncompress.finetuning.schedules import training_modes
from tests.finetuning.test_resume import interrupt_at, raise_interrupt
from tests.finetuning.toy import Toy, assert_same, chain, history_of, network, state_of, tune

CPU = torch.device("cpu")


def last_of(folder):
    return torch.load(folder / "checkpoints" / "last.pt", weights_only=True)


def test_frozen_batch_normalisation_keeps_its_statistics_and_learns(tmp_path):
    model = network()
    before = state_of(model)
    tune(tmp_path, model, freeze_bn=True)
    after = last_of(tmp_path)["model"]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {n for n in before if "running" not in n and "tracked" not in n}
    training_modes(model, ["1", "2"], freeze_bn=True)()
    assert [m.training for m in model][:4] == [False, False, True, False]


def test_the_rest_has_its_own_rate():
    chosen = FinetuneSettings(lr_rest=0.25).resolved(CPU)
    model = network()
    scales = {id(p): g["scale"] for g in make_optimizer(model, chosen).param_groups for p in g["params"]}
    assert {n for n, p in model.named_parameters() if scales[id(p)] == 1} == {"3.0.weight", "3.1.weight", "3.1.bias"}
    assert {scales[id(p)] for n, p in model.named_parameters() if not n.startswith("3")} == {0.25}


def test_without_a_rate_the_rest_stays(tmp_path):
    model = network()
    before = state_of(model)
    tune(tmp_path, model, lr_rest=0.0, freeze_bn=True)
    after = last_of(tmp_path)["model"]
    assert {n for n in before if not torch.equal(before[n], after[n])} == {"3.0.weight", "3.1.weight", "3.1.bias"}


def test_the_average_by_hand():
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    average = Average(model, 0.15)
    for value in (2.0, 3.0):
        model.weight.data.fill_(value)
        average.update()
    # decays 1/10 and 0.15 (below 2/11): 0.1 + 0.9 * 2 = 1.9, then 0.15 * 1.9 + 0.85 * 3
    average.swap()
    assert float(model.weight.detach()) == pytest.approx(0.15 * 1.9 + 0.85 * 3)
    average.swap()
    assert float(model.weight.detach()) == 3.0


@pytest.mark.slow
def test_the_average_is_what_is_kept_and_it_resumes(tmp_path):
    straight, resumed = network(), network()
    expected = tune(tmp_path / "a", straight, ema=0.9)
    state = last_of(tmp_path / "a")
    assert expected.best_epoch == 2
    assert all(torch.equal(straight.state_dict()[name], t) for name, t in state["average"]["tensors"].items())
    assert not torch.equal(state["model"]["9.weight"], straight[9].weight)
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path / "b", network(), interrupt_at(Toy(), 2, 21, raise_interrupt), ema=0.9)
    result = tune(tmp_path / "b", resumed, ema=0.9, resume=True)
    assert_same(state_of(straight), state_of(resumed))
    assert history_of(result) == history_of(expected)


def plain():
    """A network whose answer to an image does not depend on those beside it."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), chain(6, 4, 2), nn.Flatten(), nn.Linear(144, 3)).eval()


def test_parts_of_a_batch_add_up(tmp_path):
    whole, parts, seen = plain(), plain(), []
    parts.register_forward_pre_hook(lambda m, args: seen.append(len(args[0])) if m.training else None)
    tune(tmp_path / "a", whole)
    tune(tmp_path / "b", parts, accumulate=3)
    assert seen == [3, 3, 2] * 12
    for name, value in whole.state_dict().items():
        assert torch.allclose(value, parts.state_dict()[name], atol=1e-6), name


@pytest.mark.parametrize("parts", [1, 4])
def test_a_gradient_is_as_long_as_it_may_be(tmp_path, parts):
    """One step of SGD without momentum or decay moves the weights by the rate times that length."""
    start = state_of(plain())

    def moved(clip):
        how = {"epochs": 1, "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "accumulate": parts, "clip_norm": clip}
        tune(tmp_path / str(clip), plain(), Toy(8), **how)
        return torch.cat([(t - start[name]).flatten() for name, t in last_of(tmp_path / str(clip))["model"].items()])

    free, clipped, slack = moved(None), moved(0.01), moved(1e6)
    assert float(free.norm()) > 0.002
    assert float(clipped.norm()) == pytest.approx(0.001, rel=1e-3)
    assert torch.allclose(clipped, free * 0.001 / free.norm(), atol=1e-6)
    assert torch.equal(slack, free)


def test_a_rate_too_high_without_batch_statistics_overflows_unless_gradients_are_clipped(tmp_path):
    """Steps far longer than 2 / curvature: the loss grows without bound, in single precision and without momentum."""
    how = {"lr": 50.0, "momentum": 0.0, "freeze_bn": True, "precision": "fp32", "epochs": 4}
    with pytest.raises(CompressError, match=r"lower --lr \(it is 12\), or give --clip-norm 1"):
        tune(tmp_path / "a", network(), **how)
    result = tune(tmp_path / "b", network(), clip_norm=0.002, **how)
    assert "went back" not in result.note
    assert result.last.loss < result.start.loss


def test_label_smoothing_by_hand():
    torch.manual_seed(0)
    model, images, labels = plain(), torch.randn(2, 3, 8, 8), torch.tensor([0, 2])
    with torch.no_grad():
        loss = Objective(Passes(model), FinetuneSettings(label_smoothing=0.3).resolved(CPU))(images, labels)
        given = -model(images).log_softmax(1)
    targets = 0.7 * F.one_hot(labels, 3) + 0.1
    assert float(loss) == pytest.approx(float((targets * given).sum()), rel=1e-6)


@pytest.mark.slow
def test_mixup_mixes_images_and_labels_alike(tmp_path, monkeypatch):
    seen, forward = [], Objective.forward
    monkeypatch.setattr(
        Objective, "forward", lambda self, x, y, *rest: seen.append((x, y, self.training)) or forward(self, x, y, *rest)
    )
    train = Toy(8)
    train.set_epoch(1)
    tune(tmp_path, network(), train, epochs=1, mixup=1.0)
    (images, weights, _) = seen[-1]
    assert torch.allclose(weights.sum(1), torch.ones(8))
    shares = weights.max(1).values
    assert bool(((shares > 0) & (shares <= 1)).all())
    # Every image is a·own + (1 - a)·that of its neighbour, as its label is.
    own = torch.stack([train[i][0] for i in range(8)])
    labels = F.one_hot(torch.tensor(train.labels), 3).float()
    pairs = torch.cat([own.flatten(1), labels], 1)
    mixed = torch.cat([images.flatten(1), weights], 1)
    found = torch.linalg.lstsq(pairs.T, mixed.T).solution
    assert torch.allclose(found.T @ pairs, mixed, atol=1e-4)
    assert int((found.abs() > 1e-3).sum()) == 16
    assert torch.allclose(found.sum(0), torch.ones(8), atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ema": 1.0}, "ema 1.0 is out of range"),
        ({"accumulate": 0}, "accumulate 0 is out of range"),
        ({"accumulate": 65}, "accumulate 65 is out of range; give a number from 1 to below 65"),
        ({"label_smoothing": 1.0}, "label_smoothing 1.0 is out of range"),
        ({"mixup": -1.0}, "mixup -1.0 is out of range"),
        ({"clip_norm": 0.0}, "clip_norm 0.0 makes no sense; give a positive number such as 1"),
        ({"lr_rest": -1.0}, "lr_rest -1.0 is out of range"),
        ({"distill": "logits", "unlabelled": True, "label_smoothing": 0.1}, "label_smoothing is for labels"),
    ],
)
def test_options_that_make_no_sense(changes, words):
    with pytest.raises(UsageError, match=words):
        FinetuneSettings(**changes)


def test_a_training_from_before_there_were_these_options_goes_on(tmp_path):
    expected = tune(tmp_path, network(), epochs=1)
    path = tmp_path / "checkpoints" / "last.pt"
    state = torch.load(path, weights_only=True)
    for key in ("freeze_bn", "lr_rest", "ema", "accumulate", "label_smoothing", "mixup", "clip_norm", "unlabelled"):
        del state["settings"][key]
    for key in ("rate", "found", "setbacks"):
        del state[key]
    for group in state["optimizer"]["param_groups"]:
        del group["scale"]
    torch.save(state, path)
    assert tune(tmp_path, network(), epochs=1, resume=True) == expected
    with pytest.raises(UsageError, match=r"mixup was 0\.0, now 0\.5"):
        tune(tmp_path, network(), epochs=1, resume=True, mixup=0.5)
