"""A network as a graph of operations, and a walk through two networks of the same graph side by side."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from cnncompress.chains.modules import FactoredLayer
from cnncompress.network.copying import clone
from cnncompress.network.run import inference, same_outputs

ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}
RELU = {torch.relu, torch.relu_, functional.relu, functional.relu_, "relu", "relu_"}
UNFOLLOWED = (
    "torch.fx cannot follow the forward pass: layers were corrected one by one, without what comes after them, and the "
    "kernels of those that stay were left as they are"
)
Values = dict[fx.Node, Any]
Visit = Callable[[fx.Node, Values, Values], None]


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, FactoredLayer) or super().is_leaf_module(m, module_qualified_name)


@dataclass(frozen=True)
class Traced:
    """The graph of a network, and the constants that its forward pass makes, by the names that the graph has for them.

    So networks of the same structure can run it; none of them needs to hold the constants.
    """

    graph: fx.Graph
    constants: Mapping[str, Any]


class Interpreter(fx.Interpreter):
    """Runs the operations of a graph with the modules and parameters of a network."""

    def __init__(self, traced: Traced, network: nn.Module) -> None:
        super().__init__(network, graph=traced.graph)
        self.constants = traced.constants

    def fetch_attr(self, target: str) -> Any:
        """The module, parameter or constant that the graph calls `target`."""
        return self.constants[target] if target in self.constants else super().fetch_attr(target)


def trace_graph(model: nn.Module, example: Tensor | None = None) -> Traced | None:
    """The graph of a network in eval mode, or None where torch.fx cannot follow its forward pass.

    A forward pass with further arguments counts as such: what it does without them is not to be seen. So does one whose
    graph gives something else for the images `example` than the network does.
    """
    # torch.fx puts constants into the network that it traces, and the placeholders stay where the pass stores them
    work = clone(model, {id(p): p for p in model.parameters()}).eval()
    before = set(vars(work))
    try:
        with torch.no_grad():
            graph = _Tracer().trace(work)
        constants = {name: value for name, value in vars(work).items() if name not in before}
        traced = Traced(graph, {n: c for n, c in constants.items() if not isinstance(c, fx.Proxy)})
        if sum(node.op == "placeholder" for node in graph.nodes) != 1:
            return None
        return traced if example is None or _agrees(traced, model, example) else None
    except Exception:  # whatever the network's own code does when it is called with placeholders
        return None


def _agrees(traced: Traced, model: nn.Module, example: Tensor) -> bool:
    with inference(model):
        expected = model(example.clone())
    with inference(model):  # begins with the same random numbers
        return same_outputs(Interpreter(traced, model).run(example.clone()), expected)


def walk(traced: Traced, first: nn.Module, second: nn.Module, images: Tensor, visit: Visit) -> None:
    """Run two networks on `images`, operation by operation; both are in eval mode meanwhile.

    `visit(node, values, others)` is called for every module of the graph when the first network has run it and the
    second has not, with what both have computed so far. What an addition adds to a module's output is computed before
    that module where it can be, so that both summands are known to it. Values are let go after their last use.
    """
    graph = traced.graph
    runners = [Interpreter(traced, model) for model in (first, second)]
    values: list[Values] = [{}, {}]
    modules = dict(first.named_modules())
    waiting = {node: len(node.users) for node in graph.nodes}
    begun: list[fx.Node] = []
    done: set[fx.Node] = set()

    def run(i: int, node: fx.Node) -> None:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[i][n])
        values[i][node] = getattr(runners[i], node.op)(node.target, args, kwargs)

    def step(node: fx.Node) -> None:
        if node in done:
            return
        begun.append(node)
        partner = following(node, modules).partner
        ready = partner is not None and not any(_depends(partner, on) for on in begun)
        for needed in (*node.all_input_nodes, *([partner] if partner and ready else [])):
            step(needed)
        begun.pop()
        done.add(node)
        if node.op == "placeholder":
            values[0][node] = values[1][node] = images
            return
        run(0, node)
        if node.op == "call_module":
            visit(node, *values)
        run(1, node)
        for used in node.all_input_nodes:
            waiting[used] -= 1
            if not waiting[used]:
                del values[0][used], values[1][used]

    with inference(first), inference(second):
        for node in graph.nodes:
            if node.op != "output":
                step(node)


def input_of(node: fx.Node) -> fx.Node:
    """The node whose value a module is called with."""
    found = node.args[0] if node.args else next(iter(node.kwargs.values()))
    assert isinstance(found, fx.Node)
    return found


@dataclass(frozen=True)
class Following:
    """What becomes of a layer's output: batch normalisation, an addition of `partner`, a rectification, in this order.

    Each is missing where it does not come next or where its input goes elsewhere too.
    """

    norm: nn.BatchNorm2d | None = None
    partner: fx.Node | None = None
    rectified: bool = False


def following(node: fx.Node, modules: Mapping[str, nn.Module]) -> Following:
    """What follows a convolution or Linear; nothing for another node. A partner does not depend on the layer."""
    if node.op != "call_module" or not isinstance(modules[str(node.target)], nn.Conv2d | nn.Linear):
        return Following()
    start, norm, partner = node, None, None
    after = _only_user(node)
    if after is not None and after.op == "call_module":
        module = modules[str(after.target)]
        if isinstance(module, nn.BatchNorm2d):
            norm, node, after = module, after, _only_user(after)
    if after is not None and after.target in ADDITIONS and not after.kwargs:
        others = [a for a in after.args if isinstance(a, fx.Node) and a is not node]
        if len(others) != 1 or _depends(others[0], start):
            return Following(norm)
        partner, after = others[0], _only_user(after)
    return Following(norm, partner, after is not None and _is_relu(after, modules))


def _is_relu(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], nn.ReLU)
    return node.target in RELU


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _depends(node: fx.Node, on: fx.Node) -> bool:
    seen, stack = set(), [node]
    while stack:
        current = stack.pop()
        if current is on:
            return True
        if current not in seen:
            seen.add(current)
            stack.extend(current.all_input_nodes)
    return False
