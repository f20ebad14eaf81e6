"""Copies of networks that hold odd things, and forward passes that leave something behind."""

from __future__ import annotations

import random
import threading
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import cnncompress as cc
from cnncompress.correction import decompose_in_order, reconstruct
from cnncompress.errors import CompressError
from cnncompress.latency.network import latency
from cnncompress.network.copying import clone, undone
from cnncompress.network.divergence import Answers
from cnncompress.network.evaluate import evaluate
from cnncompress.network.run import inference
from tests.correction.networks import images, made
from tests.timing import ONCE


class Net(nn.Module):
    """Two layers, and one to read an attribute of."""

    def __init__(self, **attributes: object) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 5)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.b(torch.relu(self.a(x))))).mean((2, 3)))


class Diary(Net):
    """Remembers in its forward pass: an activation, a list, a number, a buffer in place and a new one."""

    def __init__(self) -> None:
        super().__init__(log=[], calls=0, last=None)
        self.register_buffer("steps", torch.zeros(1))
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.log.append(len(x))
        self.calls += 1
        self.steps += 1
        self.mean = x.detach().mean((0, 2, 3))
        self.last = super().forward(x)
        self.new = torch.rand(1) + random.random() + np.random.rand()
        return self.last


class Meter:
    """Counts under a lock."""

    def __init__(self) -> None:
        self.lock, self.counts = threading.Lock(), [1, 2]


ODD: dict[str, Callable[[], object]] = {
    "lock": threading.Lock,
    "generator": lambda: (i for i in range(3)),
    "file": lambda: open(__file__, encoding="utf-8"),  # noqa: SIM115
    "lock in a list": lambda: [threading.Lock(), {"key": threading.Lock()}],
    "module": lambda: random,
    "object with a lock": Meter,
}


@pytest.mark.parametrize("kind", ODD)
def test_what_nothing_can_copy_is_shared(kind):
    model, x = made(Net(odd=ODD[kind]())), images()
    copied = clone(model)
    assert torch.equal(copied(x), model(x))
    assert not {id(p) for p in copied.parameters()} & {id(p) for p in model.parameters()}
    if kind == "object with a lock":
        assert copied.odd.lock is model.odd.lock
        assert copied.odd.counts == [1, 2]
        assert copied.odd.counts is not model.odd.counts


def test_values_with_a_history_are_copied_without_it():
    model = made(Net())
    model.scale = model.head.weight.abs().max() * 2
    model.kept = {"activations": [model(images())]}
    copied = clone(model)
    assert torch.equal(copied.scale, model.scale)
    assert not copied.scale.requires_grad
    assert torch.equal(copied.kept["activations"][0], model.kept["activations"][0])
    assert copied.kept["activations"] is not model.kept["activations"]


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm, spectral_norm])
@pytest.mark.filterwarnings("ignore")
def test_a_normalised_weight_that_was_used_once_is_copied(norm):
    model = made(Net()).train()
    norm(model.a)
    model(images())
    model.eval()
    assert torch.allclose(clone(model)(images()), model(images()), atol=1e-6)


class Watched(Net):
    """Functions that enclose it, or one of its layers: in a hook, in a list of hooks by name and in an attribute."""

    def __init__(self) -> None:
        super().__init__(seen=[], later=None)
        self.norm.register_forward_hook(lambda module, args, output: self.seen.append(output.mean()))
        head = self.head
        self.last = lambda x, *, scale=2.0: scale * head(x) + self.seen[-1] + (self.later or 0)
        self.by_name = {"norm": self.last}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        super().forward(x)
        return self.by_name["norm"](x.new_ones(1, 8)) + self.last(x.new_ones(1, 8))


def test_functions_that_enclose_a_network_enclose_the_copy():
    model, x = Watched().eval(), images(2)
    with torch.no_grad():
        expected = model(x)
    kept = model.last
    copied = clone(model)
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    model.seen.clear()
    with torch.no_grad():
        assert torch.equal(copied(x), expected)
    assert model.seen == []
    assert model.last is kept
    assert model.by_name["norm"] is kept


class Child(nn.Module):
    """Knows the network that it is a part of."""

    def __init__(self, parent: nn.Module) -> None:
        super().__init__()
        self.parent = weakref.ref(parent)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.parent().head(x)


def test_weak_references_to_a_network_are_to_the_copy():
    model, x = Net(), torch.ones(1, 8)
    model.child = Child(model)
    copied = clone(model)
    assert copied.child.parent() is copied
    assert model.child.parent() is model
    expected = model.head(x)
    del model
    assert torch.equal(copied.child(x), expected)


class Selfish:
    """Refuses whatever is done."""

    __slots__ = ()

    def __deepcopy__(self, memo: object) -> object:
        raise ValueError("there is only one of me")


def test_a_module_that_refuses_is_named():
    model = Net()
    model.b.register_module("inner", Refusing())
    with pytest.raises(CompressError, match=r"Net, b.inner \(Refusing\), cannot be copied: no copies of this one"):
        clone(model)
    assert clone(Net(odd=Selfish())) is not None


class Refusing(nn.Module):
    """A module that is not to be copied."""

    def __deepcopy__(self, memo: object) -> nn.Module:
        raise TypeError("no copies of this one")


def state(model: nn.Module) -> list[object]:
    """Everything that a forward pass or a tool might change in a network, and the random numbers to come."""
    found: list[object] = [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]
    for name, module in model.named_modules():
        found += [name, id(module), module.training]
        for key, value in sorted(vars(module).items()):
            inner = dict(value) if isinstance(value, dict) else list(value) if isinstance(value, list) else value
            found += [key, inner.items() if key in ("_modules", "_parameters", "_buffers") else str(inner)]
    for tensor in (*model.parameters(), *model.buffers()):
        found += [id(tensor), tensor.tolist(), tensor.requires_grad, tensor.grad]
    return found


def planned(model: nn.Module, x: torch.Tensor) -> cc.Plan:
    return cc.plan(model, x, rank=0.5, force=True, images=x)


LABELLED = [(images(8), torch.arange(8) % 5)]
PUBLIC: dict[str, Callable[[nn.Module, torch.Tensor], object]] = {
    "profile": lambda m, x: cc.profile(m, x),
    "plan": planned,
    "budget": lambda m, x: cc.plan(m, x, budget=cc.Budget(macs=0.6), images=x),
    "decompose": lambda m, x: cc.decompose(m, planned(m, x), progress=False),
    "in order": lambda m, x: decompose_in_order(m, planned(m, x), x, progress=False),
    "statistics": lambda m, x: cc.collect_statistics(m, LABELLED, ["kronecker", "mahalanobis"], progress=False),
    "reconstruct": lambda m, x: reconstruct(m, cc.decompose(m, planned(m, x), progress=False), x, 2, progress=False),
    "answers": lambda m, x: Answers(m, x).divergence(m),
    "accuracy": lambda m, x: evaluate(m, LABELLED, progress=False),
    "latency": lambda m, x: latency({"": m}, x, rounds=ONCE),
}


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize("training", [False, True])
def test_the_network_is_never_touched(name, training):
    model, x = made(Diary()), images(8)
    model.train(training)
    model.head.eval()
    model.b.weight.grad = torch.ones_like(model.b.weight)
    model.norm.weight.requires_grad_(False)
    before = state(model)
    PUBLIC[name](model, x)
    assert state(model) == before


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("form", [nn.Module.eval, torch.jit.script])
def test_what_normalisation_does_to_its_buffers_is_undone(form):
    model = nn.Sequential(form(nn.BatchNorm2d(3)))
    with undone(model):
        model.train()(torch.arange(24.0).reshape(2, 3, 2, 2))
        assert model[0].running_mean.any()
    assert not model[0].running_mean.any()
    assert model[0].num_batches_tracked == 0


def test_modules_that_are_put_in_meanwhile_stay():
    model = Net()
    with undone(model):
        model.head = new = nn.Linear(8, 3)
    assert model.head is new


def test_inference_is_in_eval_mode_without_gradients():
    model = Net().train()
    with inference(model):
        assert not model.norm.training
        assert not model(images()).requires_grad
    assert model.norm.training
