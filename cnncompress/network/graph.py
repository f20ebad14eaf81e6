"""A network as a graph of operations, and what runs it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from cnncompress.chains.modules import FactoredLayer
from cnncompress.network.copying import clone
from cnncompress.network.kinds import is_layer, kind_of
from cnncompress.network.modes import evaluating
from cnncompress.network.run import inference, same_outputs

Values = dict[fx.Node, Any]


@dataclass(frozen=True)
class Traced:
    """The graph of a network, and the constants that its forward pass makes, by the names that the graph has for them.

    So networks of the same structure can run it; none of them needs to hold the constants.
    """

    graph: fx.Graph
    constants: Mapping[str, Any]

    @property
    def input(self) -> fx.Node:
        """The node of the images."""
        return next(node for node in self.graph.nodes if node.op == "placeholder")


# --- tracing ---


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        layer = isinstance(m, FactoredLayer) or (is_layer(m) and kind_of(m).is_plain(m))
        return layer or super().is_leaf_module(m, module_qualified_name)


def trace_graph(model: nn.Module, example: Tensor | None = None) -> Traced | None:
    """The graph of a network in eval mode, or None where torch.fx cannot follow its forward pass.

    A forward pass with further arguments counts as such: what it does without them is not to be seen. So does one whose
    graph gives something else for the images `example` than the network does.
    """
    # torch.fx puts constants into the network that it traces, and the placeholders stay where the pass stores them
    work = evaluating(clone(model, {id(p): p for p in model.parameters()}))
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
        values: Values = {traced.input: example.clone()}
        last = list(Runner(traced, model).run(list(traced.graph.nodes), values))[-1]
        return same_outputs(values[last], expected)


# --- running ---


class _Operations(fx.Interpreter):
    """The operations that nodes stand for, with what the graph names: constants, `replaced` modules, the network's."""

    def __init__(self, traced: Traced, network: nn.Module, replaced: Mapping[str, nn.Module]) -> None:
        super().__init__(network, graph=traced.graph)
        self.constants, self.replaced = traced.constants, replaced

    def fetch_attr(self, target: str) -> Any:
        for known in (self.constants, self.replaced):
            if target in known:
                return known[target]
        return super().fetch_attr(target)


class Runner:
    """Runs the nodes of a graph with the modules and parameters of one network.

    Modules in `replaced` are called in the place of the network's own, by the names that the graph has for those.
    `outputs` has the channels that the outputs of narrowed layers are in the network that the graph is of.
    """

    def __init__(self, traced: Traced, network: nn.Module, outputs: Mapping[str, Tensor] | None = None) -> None:
        self.traced, self.network, self.outputs = traced, network, outputs or {}
        self.replaced: dict[str, nn.Module] = {}
        self._operations = _Operations(traced, network, self.replaced)

    def module(self, node: fx.Node) -> nn.Module:
        """The module that a node calls."""
        return self._operations.fetch_attr(str(node.target))

    def compute(self, node: fx.Node, values: Values) -> None:
        """Add the value of a node to `values`, which hold those that it is computed from."""
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
        values[node] = getattr(self._operations, node.op)(node.target, args, kwargs)

    def run(self, nodes: Sequence[fx.Node], values: Values) -> Iterator[fx.Node]:
        """Compute nodes in this order, and yield each when its value is known.

        `values` hold those that come from elsewhere, and are added to. A value that was computed here is let go after
        its last use.
        """
        lifetimes = Lifetimes(node for node in nodes if node not in values)
        for node in nodes:
            if node not in values:
                self.compute(node, values)
            yield node
            for finished in lifetimes.ended_by(node):
                del values[finished]


class Lifetimes:
    """Counts the uses of values that are still to come."""

    def __init__(self, nodes: Iterable[fx.Node]) -> None:
        self.waiting = {node: len(node.users) for node in nodes}

    def ended_by(self, node: fx.Node) -> list[fx.Node]:
        """The nodes whose values nobody needs after `node` was computed."""
        ended = []
        for used in node.all_input_nodes:
            if used in self.waiting:
                self.waiting[used] -= 1
                if not self.waiting[used]:
                    ended.append(used)
        return ended
