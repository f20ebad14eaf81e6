"""Label-free gradient steps, block by block."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch
from torch import nn

import cnncompress as cc
from cnncompress.correction.blocks import columns, gradient_moments, run_block, split_blocks, weighted
from cnncompress.correction.reconstruct import clearly_worse, divergences, reconstruct
from cnncompress.errors import UsageError
from cnncompress.network.graph import Runner

module = importlib.import_module("cnncompress.correction.reconstruct")


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x):
        x = self.first(x).relu()
        y = self.norm(self.second(x))
        y += x
        x = self.third(y.relu_())
        return self.head(torch.flatten(x.mean((2, 3)), 1))


class Fire(nn.Module):
    def __init__(self):
        super().__init__()
        self.squeeze, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(16, 3)
        self.left, self.right = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)

    def forward(self, x):
        x = self.squeeze(x).relu()
        return self.head(torch.cat([self.left(x), self.right(x)], 1).relu().mean((2, 3)))


class Halves(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(4, 8, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x):
        a, b = self.first(x).chunk(2, 1)
        return self.head(torch.cat([a, self.second(b)], 1).mean((2, 3)))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.own, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.own(self.first(self.first(x).relu()).relu()).mean((2, 3)))


class Branching(nn.Module):
    """Takes another way for some images, which torch.fx cannot trace."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Conv2d(4, 6, 3), nn.Linear(6, 3)

    def forward(self, x):
        y = self.first(x)
        return self.head((y if y.sum() > 0 else 2 * y).relu().mean((2, 3)))


def chain_of_layers():
    layers = [nn.Conv2d(4, 6, 3), nn.ReLU(inplace=True), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 3), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))


def made(build, layers=("*",), rank=1, seed=0):
    """A network, the same one with some layers at a low rank, and images."""
    torch.manual_seed(seed)
    model = build().eval()
    images = torch.randn(64, 4, 8, 8)
    plan = cc.plan(model, images[:1], rank=rank, layers=layers, force=True)
    return model, cc.decompose(model, plan, progress=False), images


def borders(build, layers):
    model, small, images = made(build, layers)
    _, blocks = split_blocks(model, small, images)
    assert [a.end for a in blocks[:-1]] == [b.start for b in blocks[1:]]
    return [str(block.start) for block in blocks[1:]]


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def run(*args, **options):
    return reconstruct(*args, progress=False, **options)


@pytest.mark.parametrize(
    ("build", "layers", "starts"),
    [
        (chain_of_layers, ["0", "3"], ["input_1", "_2"]),  # the kept layer 2 belongs to what is before it
        (chain_of_layers, ["3"], ["_2"]),
        (chain_of_layers, ["0", "2", "3", "7"], ["input_1", "_1", "_2", "_6"]),
        (Residual, ["first", "second", "third"], ["x", "relu", "relu_"]),
        (Residual, ["second"], ["relu"]),
        (Fire, ["left", "right"], ["relu"]),
        (Fire, ["squeeze", "right"], ["x", "relu"]),
        (Halves, ["first", "second"], ["x", "first"]),  # not between the halves
    ],
)
def test_blocks_begin_where_a_single_value_crosses(build, layers, starts):
    assert borders(build, layers) == starts


@pytest.mark.parametrize("build", [chain_of_layers, Residual, Fire, Halves, Twice])
def test_blocks_in_a_row_are_the_network(build):
    model, small, images = made(build)
    graph, blocks = split_blocks(model, small, images)
    for network in (model, small):
        runner, x = Runner(graph, network), images.clone()
        with torch.no_grad():
            for block in blocks:
                x = run_block(runner, block, x)
            torch.testing.assert_close(x, network(images))


def test_moments_of_gradients_are_those_of_the_fisher_matrix():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)).eval()
    images = torch.randn(20000, 5)
    plan = cc.plan(model, images[:1], rank=1, force=True)
    graph, blocks = split_blocks(model, cc.decompose(model, plan, progress=False), images)
    found = gradient_moments(Runner(graph, model), blocks, images, 5000, 0)
    with torch.no_grad():
        p = model(images).softmax(1)
    fisher = torch.diag(p.mean(0)) - p.T @ p / len(p)  # E over labels of the gradient's square at the logits
    expected = model[1].weight.detach().T @ fisher @ model[1].weight.detach()
    expected = 0.9 * expected / expected.diagonal().mean() + 0.1 * torch.eye(4)
    torch.testing.assert_close(found[0], expected, rtol=0, atol=0.03)
    torch.testing.assert_close(
        found[1], 0.9 * fisher / fisher.diagonal().mean() + 0.1 * torch.eye(3), rtol=0, atol=0.03
    )


def test_a_linear_layer_reaches_the_best_approximation_of_its_rank():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4)).eval()
    images = torch.randn(1024, 6) * torch.tensor([5.0, 3, 2, 1, 0.5, 0.2])
    images -= images.mean(0)
    plan = cc.plan(model, images[:1], rank=2, layers=["0"], force=True)
    plan.layers["1"] = cc.plan(model, images[:1], rank=4, layers=["1"], force=True).layers["1"]
    start = cc.decompose(model, plan, progress=False)
    found, _ = run(model, start, images, 1200)

    graph, blocks = split_blocks(model, start, images)
    moment = gradient_moments(Runner(graph, model), blocks, images, 32, 0)[0]

    def loss(network):
        with torch.no_grad():
            return float(weighted(network[0](images) - model[0](images), moment))

    values, vectors = torch.linalg.eigh(moment.double())
    root = vectors * values.sqrt() @ vectors.T
    rows = images.double() @ model[0].weight.detach().double().T @ root  # rank 2 fits its outputs best by their SVD
    best = float(torch.linalg.svdvals(rows)[2:].square().sum()) / rows.numel()
    assert loss(start) > 10 * best
    assert best * (1 - 1e-4) < loss(found) < 1.02 * best


@pytest.mark.parametrize("rate", [0.01, 100.0])
@pytest.mark.parametrize(("build", "layers"), [(Branching, ["first"]), (Fire, ["left", "right"])])
def test_held_back_images_never_get_worse_whatever_the_rate(monkeypatch, build, layers, rate):
    monkeypatch.setattr(module, "STEP_RATE", rate)
    model, small, images = made(build, layers)  # one block, up to the logits
    found, _ = run(model, small, images, 20, seed=3)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(3))
    before, after = divergences(model, (small, found), images[order[:8]])
    assert after.mean() <= before.mean() + 1e-7
    assert rate > 1 or after.mean() < before.mean()


def test_answers_that_clearly_move_away_undo_it(monkeypatch):
    model, small, images = made(Residual)

    def spoil(session):
        for p in session.work.parameters():
            p.mul_(-3)

    monkeypatch.setattr(module._Session, "run", spoil)
    found, remarks = run(model, small, images, 5)
    assert same(found, small)
    assert found is not small
    assert len(remarks) == 1
    assert "undone" in remarks[0]


def test_a_rise_counts_from_twice_its_standard_error_on():
    before = torch.zeros(4)
    noise = torch.tensor([-1.0, 1, -1, 1])  # standard error √(4/3)/2 = 0.577
    assert not clearly_worse(before, noise + 1.1)
    assert clearly_worse(before, noise + 1.2)
    assert not clearly_worse(before[:1], before[:1])
    assert clearly_worse(before[:1], before[:1] + 1e-3)
    assert clearly_worse(before, before * float("nan"))


@pytest.mark.parametrize("build", [chain_of_layers, Residual, Fire, Halves])
def test_training_brings_the_answers_nearer_and_moves_chains_only(build):
    model, small, images = made(build)
    found, _ = run(model, small, images, 80)
    fresh = torch.randn(256, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    before, after = divergences(model, (small, found), fresh)
    assert after.mean() < before.mean()
    chains = {id(p) for p in module.chain_parameters(found)}
    old = dict(small.named_parameters())
    moved = {name for name, p in found.named_parameters() if not torch.equal(p, old[name])}
    assert moved
    assert all(id(found.get_parameter(name)) in chains for name in moved)
    assert all(torch.equal(b, dict(small.named_buffers())[name]) for name, b in found.named_buffers())


def test_a_network_that_cannot_be_followed_is_one_block():
    model, small, images = made(Branching, ["first"])
    found, remarks = run(model, small, images, 60)
    assert "torch.fx cannot trace" in remarks[0]
    before, after = divergences(model, (small, found), images)
    assert after.mean() < before.mean()


def test_the_seed_decides():
    model, small, images = made(Residual)
    first, again, other = (run(model, small, images, 20, seed=s)[0] for s in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)


def test_networks_keep_values_flags_and_modes():
    model, small, images = made(Residual)
    small.train()
    small.norm.eval()
    small.second.requires_grad_(False)
    copies = copy.deepcopy(model), copy.deepcopy(small)
    with torch.inference_mode():
        found, _ = run(model, small, images, 20)
    assert same(model, copies[0])
    assert same(small, copies[1])
    assert not model.training
    for network in (small, found):
        assert [m.training for m in network.modules()] == [m.training for m in copies[1].modules()]
        assert [p.requires_grad for p in network.parameters()] == [p.requires_grad for p in copies[1].parameters()]
        assert all(p.grad is None for p in network.parameters())
    assert not same(found, small)
    found(images).sum().backward()  # its tensors are ordinary ones


def test_an_interruption_changes_nothing(monkeypatch):
    model, small, images = made(Residual)
    small.train()
    before, calls = copy.deepcopy(small), []

    def interrupted(runner, nodes, values, run=Runner.run):
        calls.append(nodes)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return run(runner, nodes, values)

    monkeypatch.setattr(Runner, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(model, small, images, 20)
    assert same(small, before)
    assert small.training
    assert not model.training


def test_a_chain_of_two_blocks_stays():
    model, small, images = made(Twice)
    found, remarks = run(model, small, images, 20)
    assert same(found.first, small.first)
    assert not same(found.own, small.own)
    assert "chains that several blocks call were not trained" in remarks


def test_half_precision_comes_back():
    model, small, images = made(Residual, ["first", "second"])
    model, small, images = model.bfloat16(), small.bfloat16(), images.bfloat16()
    found, _ = run(model, small, images, 20)
    assert {p.dtype for p in found.parameters()} == {torch.bfloat16}
    assert same(found.third, small.third)
    assert not same(found.first, small.first)


def test_no_steps_change_nothing():
    model, small, images = made(Residual)
    found, remarks = run(model, small, images, 0)
    assert same(found, small)
    assert found is not small
    assert remarks == []


def test_a_network_without_chains_stays():
    model, _, images = made(Residual)
    found, _ = run(model, model, images, 5)
    assert same(found, model)


def test_requests_that_make_no_sense():
    model, small, images = made(Residual)
    with pytest.raises(UsageError, match="-1 steps"):
        run(model, small, images, -1)
    with pytest.raises(UsageError, match="at least 2 images"):
        run(model, small, images[:1], 5)


def test_rows_of_images_are_their_channels():
    x = torch.arange(24.0).reshape(2, 3, 2, 2)
    assert columns(x)[1].tolist() == [1, 5, 9]
    assert float(weighted(torch.tensor([[1.0, 2.0]]), torch.tensor([3.0, 5.0]))) == (3 + 20) / 2
    assert float(weighted(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 1], [1, 5]]))) == (3 + 4 + 20) / 2
