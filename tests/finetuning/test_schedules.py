import math

import pytest
import torch
from torch import nn

from cnncompress.errors import UsageError
from cnncompress.finetuning import trainable_modules
from cnncompress.finetuning.schedules import freeze_others, knows
from tests.finetuning.toy import chain, linear_chain, network, state_of, tune

EXAMPLE = torch.zeros(1, 3, 8, 8)


def test_upper_trains_what_comes_after_the_topmost_decomposed_layer():
    assert trainable_modules(network(), EXAMPLE, "upper") == (["4", "5", "6", "7", "8", "9"], "")


def test_all_trains_everything():
    names, note = trainable_modules(network(), EXAMPLE, "all")
    assert (names, note) == (["0", "1", "2", "3.0", "3.1", "4", "5", "6", "7", "8", "9"], "")


def test_a_decomposed_last_layer_falls_back_to_after_the_first():
    model = network()
    model[9] = linear_chain(128, 3, 2)
    names, note = trainable_modules(model, EXAMPLE, "upper")
    assert names == ["4", "5", "6", "7", "8", "9.0", "9.1"]
    assert "9, is the last one with parameters" in note
    assert "first decomposed layer, 3, trains" in note


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_script_within_a_network_trains_with_it(tmp_path):
    model = network()
    model[0] = torch.jit.script(model[0])
    names, _ = trainable_modules(model, EXAMPLE, "all")
    assert sorted(names) == sorted(trainable_modules(network(), EXAMPLE, "all")[0])
    before = model[0].weight.detach().clone()
    tune(tmp_path, model, epochs=1, lr=0.05)
    assert not torch.equal(model[0].weight, before)


class Branches(nn.Module):
    """Runs its children in another order than they were made in: low, side (decomposed), high, then the head."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 3)
        self.high = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.side = chain(3, 4, 2)
        self.low = nn.Conv2d(3, 3, 1)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        x = self.low(x)
        a = self.side(x).mean((2, 3))
        b = self.norm(self.high(x)).mean((2, 3))
        return self.head(torch.cat([a, b], 1))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.relu = nn.ReLU()  # called three times; the first is below the chain
        self.conv1 = chain(4, 4, 2)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(1))
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = self.relu(self.stem(x))
        y = self.conv2(self.relu(self.conv1(x)))
        return self.fc(self.relu(x + self.scale * y).mean((2, 3)))


def test_order_is_that_of_execution_in_branches():
    assert trainable_modules(Branches(), EXAMPLE, "upper")[0] == ["high", "norm", "head"]


def test_residual_networks_and_parameters_of_containers():
    model = Residual()
    assert trainable_modules(model, EXAMPLE, "upper")[0] == ["conv2", "fc"]
    assert "" in trainable_modules(model, EXAMPLE, "all")[0]  # the network itself owns `scale`


def test_parameters_without_an_effect_on_the_logits_stay_out():
    model = Branches()
    freeze_others(model, trainable_modules(model, EXAMPLE, "all")[0], EXAMPLE)
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["unused.weight", "unused.bias"]


@pytest.mark.parametrize(
    ("model", "schedule", "reason"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), "upper", "needs a decomposed layer"),
        (nn.Sequential(chain(3, 3, 1), nn.Flatten()), "upper", "leaves nothing to train"),
        (nn.Flatten(), "all", "leaves nothing to train"),
        (nn.Flatten(), "uper", "did you mean 'upper'"),
    ],
)
def test_schedules_that_cannot_be(model, schedule, reason):
    with pytest.raises(UsageError, match=reason):
        trainable_modules(model, EXAMPLE, schedule)


def test_upper_leaves_all_below_bitwise_unchanged(tmp_path):
    model = network()
    before = state_of(model)
    modes = []
    model[0].register_forward_hook(lambda *_: modes.append([m.training for m in model]))
    result = tune(tmp_path, model, schedule="upper", epochs=2)
    assert result.best_epoch > 0
    after = state_of(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"4.{n}" for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")} | {
        "9.weight",
        "9.bias",
    }
    assert [False] * 4 + [True] * 6 in modes
    assert all(mode in ([False] * 4 + [True] * 6, [False] * 10) for mode in modes)


def test_statistics_are_kept_where_the_network_knows_something(tmp_path):
    assert knows(0.5 * math.log(3) - 0.01, 3)
    assert not knows(0.5 * math.log(3), 3)
    model = network()
    untrained = tune(tmp_path / "a", model, epochs=6, lr=0.05)
    assert not untrained.freeze_bn
    before = model[1].running_mean.clone()
    assert untrained.best.loss < 0.5
    assert tune(tmp_path / "b", model).freeze_bn
    assert torch.equal(model[1].running_mean, before)
    assert not tune(tmp_path / "c", model, freeze_bn=False).freeze_bn


def test_nothing_below_the_lowest_layer_that_trains_is_in_the_graph(tmp_path):
    model, seen = network(), {}

    def watch(name):
        def hook(module, args, output):
            if model[9].training and torch.is_grad_enabled():
                seen.setdefault(name, set()).add(output.requires_grad)

        return hook

    for name, module in model.named_children():
        module.register_forward_hook(watch(name))
    tune(tmp_path, model, schedule="upper", epochs=1)
    assert seen == {str(i): {i >= 4} for i in range(10)}
