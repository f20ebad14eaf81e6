"""A walk through two networks: the values are those of plain passes."""

from __future__ import annotations

import gc
import weakref
from collections import Counter

import pytest
import torch
from torch import nn
from torchvision.models import resnet18, resnet50

from cnncompress.correction.target import Positions
from cnncompress.correction.walk import Visit, walk
from cnncompress.fitting import decompose
from cnncompress.network.copying import clone
from cnncompress.network.graph import Runner, trace_graph
from cnncompress.network.kinds import kind_of, spec_of
from cnncompress.network.layers import layers_of
from cnncompress.planning import plan
from tests.correction.fits import side_by_side
from tests.correction.networks import Concat, Opaque, Residual, Tokens, images, made, plain
from tests.decompositions.helpers import randn, randomize

NETWORKS = {"residual": Residual, "concat": Concat, "tokens": Tokens, "plain": plain}


def recorded(model: nn.Module, x: torch.Tensor) -> tuple[dict[str, list], torch.Tensor]:
    """Inputs and outputs of every layer in a plain forward pass, copied before anything changes them in place."""
    found: dict[str, list] = {}
    handles = [
        layer.register_forward_hook(
            lambda module, args, output, name=name: found.setdefault(name, []).append((args[0].clone(), output.clone()))
        )
        for name, layer in layers_of(model).items()
    ]
    with torch.no_grad():
        output = model(x)
    for handle in handles:
        handle.remove()
    return found, output


def changed(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """The network with all its layers at half their rank."""
    return decompose(model, plan(model, x, rank=0.5, force=True), progress=False)


@pytest.mark.parametrize("name", NETWORKS)
def test_values_are_those_of_plain_forward_passes(name):
    model, x = made(NETWORKS[name]()), images()
    other = made(clone(model), seed=7)
    expected, seen = (recorded(model, x)[0], recorded(other, x)[0]), Counter()

    for visit in side_by_side(model, other, x):
        call = seen[visit.layer]
        assert torch.equal(visit.output, expected[0][visit.layer][call][1])
        assert torch.equal(visit.input, expected[1][visit.layer][call][0])
        seen[visit.layer] += 1
    assert seen == {layer: len(calls) for layer, calls in expected[0].items()}


def test_activations_overwrite_what_is_theirs_alone_and_stay_as_they_are():
    model, x = (
        made(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU6(), nn.Sigmoid(), nn.ReLU(), nn.Conv2d(6, 4, 1))),
        images(),
    )
    before, kept = x.clone(), []
    for visit in side_by_side(model, clone(model), x):
        kept.append(visit.output)
    assert torch.equal(x, before)
    assert float(kept[0].min()) >= 0  # overwritten by what follows the visit
    assert torch.equal(kept[1], model(x))
    assert not any(m.inplace for m in model if isinstance(m, nn.ReLU | nn.ReLU6))


def test_activations_of_what_others_take_too_overwrite_nothing():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.act = nn.Conv2d(3, 3, 1), nn.ReLU()

        def forward(self, x):
            y = self.act(x)
            z = self.a(x)
            return self.act(z) + z + y

    model, x = made(Twice()), images()
    before = x.clone()
    (output,) = [visit.output for visit in side_by_side(model, clone(model), x)]
    assert torch.equal(x, before)
    assert torch.equal(output, model.a(x))


def test_what_is_put_in_during_the_walk_is_run():
    model, x = made(Residual()), images()
    other, last = clone(model), None
    traced, replacement = trace_graph(model), made(Residual(), seed=5).conv2
    compressed = Runner(traced, other)
    with torch.no_grad():
        for visit in walk(Runner(traced, model), compressed, x, {"conv2", "head"}):
            if visit.layer == "conv2":
                compressed.replaced["conv2"] = replacement
            last = visit.input.clone()
    assert torch.equal(last, recorded(model, x)[0]["head"][0][0]) is False
    assert other.conv2 is not replacement  # nothing is put into the network itself
    other.conv2 = replacement
    assert torch.equal(last, recorded(other, x)[0]["head"][0][0])


def test_chains_are_single_operations():
    model, x = made(Residual()), images(2)
    small = changed(model, x)
    graph = trace_graph(small).graph
    targets = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    assert {"stem", "conv1", "conv2", "short.0", "head"} <= set(targets)
    assert not any(target.startswith(("stem.", "conv1.", "short.0.")) for target in targets)


@pytest.mark.parametrize("make", [resnet18, resnet50], ids=["BasicBlock", "Bottleneck"])
def test_every_layer_of_a_resnet_is_visited_once_and_computed_once(make):
    model, x, visits = make(weights=None).eval(), images(1, size=32), Counter()
    calls = Counter()
    for name, layer in layers_of(model).items():
        layer.register_forward_hook(lambda *args, name=name: calls.update([name]))
    traced = trace_graph(model)
    with torch.no_grad():
        visits.update(visit.layer for visit in walk(Runner(traced, model), Runner(traced, model), x, layers_of(model)))
    assert visits == dict.fromkeys(layers_of(model), 1)
    assert calls == {**dict.fromkeys(layers_of(model), 2), "fc": 1}  # once for either network, as far as it is needed


def test_one_network_at_a_time_holds_what_lies_between_two_layers():
    """Of five large values in a row, each network holds two: the one that is computed and the one that it is from."""
    between, alive, most = [nn.Sigmoid() for _ in range(5)], weakref.WeakSet(), [0]
    model = nn.Sequential(nn.Conv2d(3, 4, 1), *between, nn.Conv2d(4, 2, 1)).eval()

    def watch(module, args, output):
        alive.add(output)
        most[0] = max(most[0], len(alive))

    for module in between:
        module.register_forward_hook(watch)
    for visit in side_by_side(model, model, images()):
        del visit
    assert most[0] == 2  # of one network, the other has none


def test_values_are_let_go():
    """Never more alive at once than the block in hand needs, and nothing afterwards."""
    model, x = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(12))), images(channels=4)
    alive: list[weakref.ref] = []
    counts = []

    for visit in side_by_side(model, clone(model), x):
        alive.append(weakref.ref(visit.output))
        counts.append(sum(ref() is not None for ref in alive))
        del visit
    gc.collect()
    assert max(counts) <= 2
    assert not any(ref() is not None for ref in alive)


def test_a_walk_changes_nothing():
    model, x = made(Residual()), images()
    model.train()
    model.bn1.eval()
    other = clone(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    states = [m.training for m in model.modules()]
    assert len(list(side_by_side(model, other, x))) == len(layers_of(model))
    assert [m.training for m in model.modules()] == [m.training for m in other.modules()] == states
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(x, images())


class Optional(nn.Module):
    """What it does without a mask is not what torch.fx sees."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x, mask=None):
        x = self.conv(x)
        return (x if mask is None else x * mask).mean((2, 3))


@pytest.mark.parametrize("make", [lambda: Opaque(plain()), Optional], ids=["looks at values", "optional argument"])
def test_networks_that_cannot_be_followed(make):
    model = randomize(make()).train()
    assert trace_graph(model) is None
    assert all(m.training for m in model.modules())


def test_a_network_that_fails_is_not_followed():
    class Fails(nn.Module):
        def forward(self, x):
            raise ValueError("no")

    assert trace_graph(Fails()) is None


class Constants(nn.Module):
    """Makes a tensor in its forward pass, takes an element of a buffer, and keeps what it computed."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("std", torch.tensor([0.5, 2.0]))
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)
        self.seen = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (x - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)) * self.std[0]
        self.seen = self.conv(x)
        return self.head(self.seen.mean((2, 3)))


def test_constants_go_with_the_graph_and_not_into_the_network():
    model, x = made(Constants()), images()
    other = made(clone(model), seed=7)
    before = set(vars(model))
    (head,) = (visit for visit in side_by_side(model, other, x) if visit.layer == "head")
    assert torch.equal(head.output, recorded(model, x)[1])
    assert torch.equal(other.head(head.input), recorded(other, x)[1])
    assert set(vars(model)) == before == set(vars(other))
    assert trace_graph(model).constants.keys() == {"_tensor_constant0", "_tensor_constant1"}


class Suspicious(nn.Module):
    """Another way for what is no tensor, as a placeholder is."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.head(x.mean((2, 3)))
        return x if isinstance(x, torch.Tensor) else 2 * x


def test_a_graph_that_gives_something_else_is_not_followed():
    model = made(Suspicious())
    assert trace_graph(model) is not None
    assert trace_graph(model, images()) is None


@pytest.mark.parametrize("linear", [False, True])
def test_outputs_of_a_layer_that_gives_fewer_channels_are_those_that_are_left(linear):
    full, small = (nn.Linear(4, n) if linear else nn.Conv2d(4, n, 1) for n in (6, 3))
    x, left = randn(2, 5, 4) if linear else randn(2, 4, 3, 3), torch.tensor([1, 2, 5])
    y = full.double()(x).detach()
    wanted = y[..., left] if linear else y[:, left]
    visit = Visit("layer", small, x, y, left=left)
    positions = Positions(kind_of(small), spec_of(small), torch.tensor([0, 4, 9]))
    assert visit.shape == wanted.shape
    assert torch.equal(visit.outputs(positions), positions.outputs(wanted))
    assert torch.equal(Visit("layer", full, x, y).outputs(positions), positions.outputs(y))
