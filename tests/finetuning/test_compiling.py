"""Compiled steps: the same training, under the same names; what is compiled, and where that fails."""

import functools

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import cnncompress as cc
from cnncompress.errors import UsageError
from cnncompress.finetuning import Lessons, Origin, finetune
from cnncompress.network import compiling
from tests.finetuning.test_prefix import Fixed, residual
from tests.finetuning.test_resume import interrupt_at, raise_interrupt
from tests.finetuning.toy import Toy, assert_same, chain, history_of, network, settings, state_of, tune

REAL = torch.compile


@pytest.fixture
def traced(monkeypatch):
    """Dynamo traces, and what it traced runs as it is; the number of the calls that did."""
    calls = []

    def backend(graph, inputs):
        def run(*args):
            calls.append(len(args))
            return graph(*args)

        return run

    monkeypatch.setattr(torch, "compile", functools.partial(REAL, backend=backend))
    monkeypatch.setattr(compiling.shutil, "which", lambda name: name)
    yield calls
    torch.compiler.reset()


def teacher():
    torch.manual_seed(8)
    body = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 3)).eval()


def learned(folder, build=network, train=Toy, teacher=None, **changes):
    """The result of a training and the weights that it leaves."""
    model = build()
    result = finetune(
        model, Lessons(train(), Toy(24, seed=1), teacher), settings(**changes), folder / "checkpoints", device="cpu"
    )
    return result, model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ema": 0.9, "accumulate": 3, "mixup": 1.0, "clip_norm": 0.1},
        {"schedule": "upper", "lr": None},
        {"distill": "logits+attention", "teacher": teacher},
        {"distill": "logits", "unlabelled": True, "teacher": teacher},
    ],
    ids=["plain", "options", "upper", "distilled", "unlabelled"],
)
def test_compiled_steps_are_the_same_training(tmp_path, traced, changes):
    build = {key: make() for key, make in changes.items() if key == "teacher"}
    rest = {key: value for key, value in changes.items() if key != "teacher"}
    plain, model = learned(tmp_path / "a", **build, **rest)
    assert not traced
    found, compiled = learned(tmp_path / "b", **build, **rest, compile=True)
    assert len(traced) >= 12
    assert found.uncompiled == ""
    assert_same(state_of(model), state_of(compiled))
    assert history_of(found) == history_of(plain)
    states = [torch.load(tmp_path / one / "checkpoints" / "last.pt", weights_only=True) for one in "ab"]
    assert_same(states[0]["model"], states[1]["model"])
    best = load_file(tmp_path / "b" / "checkpoints" / "best.safetensors")
    assert best.keys() == network().state_dict().keys()
    assert compiled._compiled_call_impl is None
    assert not any(module._forward_hooks for module in compiled.modules())


def test_what_frozen_layers_gave_goes_into_compiled_steps(tmp_path, traced):
    changes = {"build": residual, "train": Fixed, "schedule": "upper", "epochs": 3}
    plain, model = learned(tmp_path / "a", **changes)
    found, compiled = learned(tmp_path / "b", **changes, compile=True)
    assert 18 <= len(traced) <= 20  # one call a step, and that of the rehearsal: nothing is traced anew
    assert_same(state_of(model), state_of(compiled))
    assert history_of(found) == history_of(plain)


def test_a_cascade_compiles_every_step(tmp_path, traced):
    torch.manual_seed(4)
    original = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.Flatten(), nn.Linear(96, 3)).eval()
    plan = cc.plan(original, torch.zeros(1, 3, 8, 8), method="spatial-svd", rank=2)
    weights = []
    for flag in (False, True):
        small = cc.decompose(original, cc.Plan(plan.layers), progress=False)
        lessons = Lessons(Toy(), Toy(24, seed=1), origin=Origin(original, plan))
        how = settings(schedule="cascade", distill="logits", epochs=1, compile=flag)
        finetune(small, lessons, how, tmp_path / str(flag) / "checkpoints", device="cpu")
        weights.append(state_of(small))
    assert traced
    assert_same(*weights)


def test_a_network_that_the_compiler_does_not_take_trains_as_it_is(tmp_path, traced, monkeypatch, caplog):
    def refuse(graph, inputs):
        raise NotImplementedError("no such thing\nand a long trace")

    monkeypatch.setattr(torch, "compile", functools.partial(REAL, backend=refuse))
    plain, model = learned(tmp_path / "a")
    found, compiled = learned(tmp_path / "b", compile=True)
    words = "torch.compile does not take Sequential: no such thing, so the training ran uncompiled"
    assert found.uncompiled == words
    assert words in found.note
    assert f"warning: {words}" in caplog.text
    assert_same(state_of(model), state_of(compiled))
    assert history_of(found) == history_of(plain)


def test_without_a_compiler_nothing_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match=r"cannot compile: .*install g\+\+ or clang\+\+.*or leave out --compile"):
        tune(tmp_path, network(), compile=True)
    assert not list(tmp_path.iterdir())


def test_a_training_goes_on_compiled_or_not_as_it_began(tmp_path, traced):
    tune(tmp_path, network(), epochs=1)
    with pytest.raises(UsageError, match="compile was False, now True"):
        tune(tmp_path, network(), epochs=1, resume=True, compile=True)


@pytest.mark.slow
@pytest.mark.skipif(bool(compiling.missing_compiler()), reason="needs a C++ compiler")
def test_the_compiler_itself(tmp_path):
    """Near the uncompiled training; resumed, the bits of one that nothing stopped, on one machine."""
    how = {"epochs": 2, "distill": "logits+attention", "compile": True}

    def run(folder, **changes):
        model = small()
        train = changes.pop("train", None) or Toy()
        resume, rest = changes.pop("resume", False), {**how, **changes}
        lessons = Lessons(train, Toy(24, seed=1), teacher())
        result = finetune(model, lessons, settings(**rest), folder / "checkpoints", device="cpu", resume=resume)
        return result, state_of(model)

    torch.set_num_threads(1)
    plain, uncompiled = run(tmp_path / "a", compile=False)
    found, straight = run(tmp_path / "b")
    assert found.uncompiled == ""
    for name, value in uncompiled.items():
        assert torch.allclose(value, straight[name], atol=1e-4), name
    assert found.last.loss == pytest.approx(plain.last.loss, rel=1e-3)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "c", train=interrupt_at(Toy(), 2, 21, raise_interrupt))
    torch.compiler.reset()
    assert_same(straight, run(tmp_path / "c", resume=True)[1])


def small():
    """Without dropout, whose random numbers are others where it is compiled."""
    torch.manual_seed(3)
    body = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), chain(8, 8, 4)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 3)).eval()
