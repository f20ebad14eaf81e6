"""Through a network and its compressed copy side by side, layer by layer."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from cnncompress.chains.modules import FactoredLayer
from cnncompress.correction.following import Following, depends, following
from cnncompress.correction.target import Positions
from cnncompress.network.graph import Lifetimes, Runner, Values
from cnncompress.network.kinds import called_with, is_layer, kind_of
from cnncompress.network.operations import ACTIVATIONS, NORMS
from cnncompress.network.partial import first_call
from cnncompress.network.run import inference

NOTHING = Following()


@dataclass(frozen=True)
class Visit:
    """A layer that the original has computed and the compressed network has not; `module` is the one to be replaced.

    `input` is what the layer gets in the compressed network, `output` what it gives in the original, of which it gives
    only the channels `left`, None for all. `summands` are what the output is added to, in the original and in the
    compressed network; None where one is not known yet.
    """

    layer: str
    module: nn.Module
    input: Tensor
    output: Tensor
    following: Following = NOTHING
    summands: tuple[Any, Any] | None = None
    left: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        """The shape of the output that the layer gives in the compressed network."""
        shape = list(self.output.shape)
        if self.left is not None:
            shape[kind_of(self.module).channel_axis] = len(self.left)
        return torch.Size(shape)

    def outputs(self, positions: Positions) -> Tensor:
        """What the layer should give at some positions, [R, F]."""
        outputs = positions.outputs(self.output)
        return outputs if self.left is None else outputs[:, self.left]


def walk(original: Runner, compressed: Runner, images: Tensor, layers: Collection[str]) -> Iterator[Visit]:
    """The calls of `layers` in network order, on `images`; both networks are in eval mode, without gradients.

    A module that is put into `compressed.replaced` at a visit is run in the layer's place from then on. What an
    addition adds to a layer's output is computed before the layer where it can be. Values are let go after their last
    use: who takes a visit lets go of it before the next one. The original goes ahead through the next layer, and lets
    go of its input, before the compressed network follows: only one of them holds the values in between.
    """
    modules = dict(compressed.network.named_modules())
    order = network_order(original.traced.graph, modules)
    ours, theirs = Side(original, order, images), Side(compressed, order, images)
    for place, node in enumerate(order):
        if node.op == "call_module" and node.target in layers:
            ours.advance(place + 1)
            theirs.advance(place)
            yield _visit(node, modules, ours.values, theirs.values, compressed.outputs.get(str(node.target)))


class Side:
    """One of the networks of a walk, at a place in their common order of nodes, with the values that it still needs."""

    def __init__(self, runner: Runner, order: Sequence[fx.Node], images: Tensor) -> None:
        self.runner, self.order, self.place = runner, order, 0
        self.lifetimes = Lifetimes(order)
        self.values: Values = {runner.traced.input: images.clone()}  # a network may write into its input

    def advance(self, place: int) -> None:
        """Compute all nodes before a place; values are let go after their last use."""
        for node in self.order[self.place : place]:
            if node not in self.values:
                self.compute(node)
            for ended in self.lifetimes.ended_by(node):
                del self.values[ended]
        self.place = place

    def compute(self, node: fx.Node) -> None:
        """Compute a node; what it is computed from stays."""
        with _in_place(node, self.runner):
            self.runner.compute(node, self.values)


@contextmanager
def _in_place(node: fx.Node, runner: Runner) -> Iterator[None]:
    """Have an activation overwrite what a layer or normalisation made for it alone: the largest values are there."""
    module = runner.module(node) if node.op == "call_module" else None
    if not isinstance(module, ACTIVATIONS) or getattr(module, "inplace", True) or not _is_own(input_of(node), runner):
        yield
        return
    module.inplace = True
    try:
        yield
    finally:
        module.inplace = False


def _is_own(node: fx.Node, runner: Runner) -> bool:
    """Whether the value of a node is a tensor of its own, of a single use."""
    if node.op != "call_module" or len(node.users) != 1:
        return False
    module = runner.module(node)
    return is_layer(module) or isinstance(module, (FactoredLayer, *NORMS))


def _visit(node: fx.Node, modules: Mapping[str, nn.Module], ours: Values, theirs: Values, left: Tensor | None) -> Visit:
    after = following(node, modules)
    summands = (ours[after.partner], theirs[after.partner]) if after.partner in theirs else None
    name = str(node.target)
    return Visit(name, modules[name], theirs[input_of(node)], ours[node], after, summands, left)


def input_of(node: fx.Node) -> fx.Node:
    """The node whose value a module is called with."""
    source = node.args[0] if node.args else next(iter(node.kwargs.values()))
    assert isinstance(source, fx.Node)
    return source


def network_order(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> list[fx.Node]:
    """All nodes but the output, each after what it needs, and after what is added to it where that can be."""
    done: dict[fx.Node, None] = {}
    for node in graph.nodes:
        if node.op != "output":
            _take(node, modules, done, [])
    return list(done)


def _take(node: fx.Node, modules: Mapping[str, nn.Module], done: dict[fx.Node, None], begun: list[fx.Node]) -> None:
    """Add a node to `done` after those that come before it; `begun` are the nodes that wait for it."""
    if node in done:
        return
    begun = [*begun, node]
    partner = following(node, modules).partner
    ready = partner is not None and not any(depends(partner, on) for on in begun)
    for needed in (*node.all_input_nodes, *([partner] if partner and ready else [])):
        _take(needed, modules, done, begun)
    done[node] = None


# --- without a graph ---


def one_by_one(original: nn.Module, compressed: nn.Module, images: Tensor, layers: Collection[str]) -> Iterator[Visit]:
    """The first calls of `layers` on `images`, each from forward passes of its own, without what comes after them."""
    for layer in layers:
        x, y = values_at(compressed, layer, images)[0], values_at(original, layer, images)[1]
        yield Visit(layer, original.get_submodule(layer), x, y)


def values_at(model: nn.Module, name: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """Input and output of a layer's first call on `images`."""
    with inference(model):
        args, kwargs, output = first_call(model, model.get_submodule(name), images)
    return called_with(args, kwargs), output
