"""Frozen layers are free: no graph, no second computation, and the training that there is without that."""

import dataclasses

import pytest
import torch
from torch import nn

from cnncompress.errors import UsageError
from cnncompress.finetuning import FinetuneSettings, Lessons, Origin, finetune, trainable_modules
from cnncompress.finetuning.batches import Batch
from cnncompress.finetuning.prefix import Prefix, find_prefix
from cnncompress.finetuning.schedules import freeze_others
from cnncompress.network.compressed import with_provenance
from tests.finetuning import cascades
from tests.finetuning.test_schedules import Branches, Residual
from tests.finetuning.toy import Toy, assert_same, chain, history_of, network, state_of, tune

EXAMPLE = torch.zeros(1, 3, 8, 8)


class Fixed(Toy):
    """Gives the same images in every epoch, and counts how often each is read."""

    fixed = True

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.reads = [0] * len(self)

    def __getitem__(self, index):
        self.reads[index] += 1
        return self.images[index], self.labels[index]


class Block(nn.Module):
    """A residual block, whose shortcut passes by what is in it."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.norm, self.relu = layer, nn.BatchNorm2d(4), nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(x + self.norm(self.layer(x)))


def residual():
    """Three blocks; the second one has the topmost chain."""
    torch.manual_seed(5)
    blocks = [Block(nn.Conv2d(4, 4, 3, padding=1)), Block(chain(4, 4, 2)), Block(nn.Conv2d(4, 4, 3, padding=1))]
    stem = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)).eval()


def prefix_of(model, schedule="upper"):
    return find_prefix(model, trainable_modules(model, EXAMPLE, schedule)[0], EXAMPLE)


def test_the_longest_part_that_all_depends_on_alone():
    """In a sequence, that is up to the chain; a shortcut around the chain's normalisation ends it before its block."""
    model = network()
    assert prefix_of(model).end is model[3]
    model = residual()
    found = prefix_of(model)
    assert found.end is model[2]
    assert [module for module, *_ in found.skipped] == [model[0], model[1]]
    assert prefix_of(model, "all") is None


def test_what_depends_on_the_images_otherwise_has_no_prefix():
    """The stem ends one of branches; of an activation that is called three times none is skipped."""
    model = Branches()
    assert prefix_of(model).end is model.low
    model = Residual()
    assert prefix_of(model).end is model.stem
    assert not Prefix(model, model.conv1).holds(torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("build", [network, residual, Branches, Residual])
def test_a_given_output_gives_the_answers_and_gradients_of_the_images(build):
    model, images = build().eval(), torch.randn(4, 3, 8, 8)
    names = trainable_modules(model, EXAMPLE, "upper")[0]
    prefix = find_prefix(model, names, EXAMPLE)
    freeze_others(model, names, EXAMPLE)
    expected = model(images)
    with torch.no_grad():
        output = prefix.output(images)
    with prefix.given(output):
        found = model(torch.zeros_like(images))
    assert torch.equal(found, expected)
    assert torch.equal(model(images), expected)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for a, b in zip(*(torch.autograd.grad(x.square().sum(), parameters) for x in (found, expected)), strict=True):
        assert torch.equal(a, b)


def test_nothing_frozen_has_a_graph_or_is_computed_again(tmp_path):
    model, train, graphs, computed = network(), Fixed(), [], []
    model[0].register_forward_hook(lambda m, args, out: computed.append(float(out.detach().abs().max())))
    for i in range(4):
        model[i].register_forward_hook(lambda m, args, out: graphs.append(out.requires_grad))
    lessons = Lessons(train, Toy(24, seed=1))
    settings = FinetuneSettings(schedule="upper", epochs=3, batch_size=8, lr=0.02)
    finetune(model, lessons, settings, tmp_path / "checkpoints", device="cpu")
    assert not any(graphs)
    assert train.reads == [1] * 48
    assert sum(value == 0 for value in computed) >= 18  # the steps of three epochs


@pytest.mark.parametrize(
    "changes",
    [{}, {"lr": None}, {"accumulate": 2}, {"images_per_epoch": 16}, {"ema": 0.5}, {"freeze_bn": True}],
    ids=str,
)
def test_kept_outputs_train_as_images_do(tmp_path, caplog, changes):
    caplog.set_level("INFO", "cnncompress")
    kept, plain = network(), network()
    results = [
        tune(tmp_path / str(gib), model, Fixed(), schedule="upper", cache_gib=gib, **changes)
        for gib, model in ((2.0, kept), (0.0, plain))
    ]
    assert caplog.text.count("what frozen layers give for") == 1
    for name, value in state_of(plain).items():
        assert torch.allclose(value, kept.state_dict()[name], atol=1e-5), name
    for a, b in zip(*(history_of(result) for result in results), strict=True):
        assert a["val_loss"] == pytest.approx(b["val_loss"], rel=1e-4)


@pytest.mark.parametrize("unlabelled", [False, True])
def test_a_teacher_answers_once(tmp_path, unlabelled):
    teacher, seen = network(dropout=0.0), []
    teacher.register_forward_hook(lambda m, args, out: seen.append(len(out)))
    states = []
    for gib in (2.0, 0.0):
        model, train = network(), Fixed()
        with torch.no_grad():
            model[9].weight.zero_()
        chosen = {"schedule": "upper", "distill": "logits", "unlabelled": unlabelled, "cache_gib": gib, "epochs": 3}
        settings = FinetuneSettings(batch_size=8, lr=0.02, **chosen)
        finetune(model, Lessons(train, Toy(8), teacher), settings, tmp_path / str(gib), device="cpu")
        states.append((state_of(model), sum(seen), train.reads))
        seen.clear()
    (kept, asked, reads), (plain, often, _) = states
    assert reads == [1] * 48
    assert often - asked == 2 * 48
    assert all(torch.allclose(kept[name], plain[name], atol=1e-5) for name in plain)


@pytest.mark.slow
def test_a_cascade_keeps_what_its_steps_froze(tmp_path):
    small, train = cascades.small_of(cascades.original()), Fixed()
    lessons = Lessons(train, cascades.VAL, origin=Origin(cascades.original(), with_provenance(small).plan))
    result = finetune(small, lessons, cascades.settings(epochs=4), tmp_path / "checkpoints", device="cpu")
    assert train.reads == [3 * 2] * 48  # once for statistics and once for the epochs of each of three steps
    plain = cascades.small_of(cascades.original())
    other = dataclasses.replace(cascades.settings(epochs=4), cache_gib=0.0)
    expected = finetune(plain, dataclasses.replace(lessons, train=Fixed()), other, tmp_path / "plain", device="cpu")
    assert [s.tuned.top1 for s in result.steps] == pytest.approx([s.tuned.top1 for s in expected.steps], abs=10)
    assert [s.decomposed.loss for s in result.steps] == pytest.approx(
        [s.decomposed.loss for s in expected.steps], rel=0.05
    )


@pytest.mark.parametrize(
    ("changes", "reads"),
    [
        ({"mixup": 0.2}, 2),
        ({"distill": "attention"}, 2),
        ({"schedule": "all"}, 2),
        ({"epochs": 1}, 1),
        ({"cache_gib": 1e-7}, None),
    ],
    ids=str,
)
def test_where_nothing_is_kept(tmp_path, caplog, changes, reads):
    caplog.set_level("INFO", "cnncompress")
    train = Fixed()
    settings = FinetuneSettings(**{"schedule": "upper", "epochs": 2, "batch_size": 8, "lr": 0.02, **changes})
    teacher = network() if "distill" in changes else None
    finetune(network(), Lessons(train, Toy(8), teacher), settings, tmp_path / "checkpoints", device="cpu")
    assert "is kept" not in caplog.text
    if reads is None:
        assert "is not kept: it does not fit 1e-07 GiB" in caplog.text
    else:
        assert train.reads == [reads] * 48


def test_half_precision_where_only_that_has_room(tmp_path, caplog):
    """48 outputs [8, 8, 8] take 96 KiB in single precision and 48 in half."""
    caplog.set_level("INFO", "cnncompress")
    model, plain = network(), network()
    tune(tmp_path / "a", model, Fixed(), schedule="upper", cache_gib=70 / 2**20)
    tune(tmp_path / "b", plain, Fixed(), schedule="upper", cache_gib=0.0)
    assert "is kept: 0 MiB in float16" in caplog.text
    for name, value in state_of(plain).items():
        assert torch.allclose(value, model.state_dict()[name], atol=1e-2), name


def test_numbers_that_half_precision_has_not(tmp_path, caplog):
    caplog.set_level("INFO", "cnncompress")
    model = network()
    with torch.no_grad():
        model[3][-1].bias[0] = 1e6
    tune(tmp_path, model, Fixed(), schedule="upper", cache_gib=70 / 2**20)
    assert "is not kept" in caplog.text


def test_resuming_gives_the_bits_of_an_uninterrupted_training(tmp_path):
    straight, broken, resumed, steps = network(), network(), network(), []
    expected = tune(tmp_path / "a", straight, Fixed(), schedule="upper", epochs=3)

    def stop(module, args, output):
        steps.append(module.training)
        if sum(steps) == 14:
            raise KeyboardInterrupt

    broken[9].register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path / "b", broken, Fixed(), schedule="upper", epochs=3)
    result = tune(tmp_path / "b", resumed, Fixed(), schedule="upper", epochs=3, resume=True)
    assert_same(state_of(straight), state_of(resumed))
    assert history_of(result) == history_of(expected)


def test_a_batch_in_parts():
    batch = Batch(torch.arange(5)[:, None], torch.arange(5), None, torch.arange(10).view(5, 2))
    parts = batch.parts(2)
    assert [len(part.images) for part in parts] == [3, 2]
    assert parts[1].labels.tolist() == [3, 4]
    assert parts[1].given is None
    assert parts[1].logits.tolist() == [[6, 7], [8, 9]]


def test_room_that_makes_no_sense():
    with pytest.raises(UsageError, match="cache_gib -1 is out of range"):
        FinetuneSettings(cache_gib=-1)
