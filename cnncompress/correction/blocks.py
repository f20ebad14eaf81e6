"""The parts of a network between points where a single value crosses: residual blocks, Fire modules, single layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from cnncompress.chains.modules import FactoredLayer
from cnncompress.network.graph import Runner, Traced, Values, trace_graph
from cnncompress.network.meaning import Meaning
from cnncompress.network.run import inference, logits

PROBED_IMAGES = 3  # show which values have one row an image
WIDEST_MOMENT = 4096  # channels; of more, only the diagonal of a second moment is taken
CLASSES = Meaning()
EVEN_SHARE = 0.1  # of the weight, which goes to all channels alike


@dataclasses.dataclass(frozen=True)
class Block:
    """The operations `nodes` of a graph, which make the value of `end` from that of `start`."""

    nodes: tuple[fx.Node, ...]
    start: fx.Node
    end: fx.Node


def called(runner: Runner, block: Block) -> list[nn.Module]:
    """The modules that a block calls, each once."""
    return list(dict.fromkeys(runner.module(node) for node in block.nodes if node.op == "call_module"))


def run_block(runner: Runner, block: Block, x: Tensor) -> Tensor:
    """The value of the block's end for the value `x` of its start, which operations in place may change."""
    values: Values = {block.start: x}
    for _ in runner.run(block.nodes, values):
        pass
    return logits(values[block.end]) if block.end.op == "output" else values[block.end]


def split_blocks(model: nn.Module, small: nn.Module, images: Tensor) -> tuple[Traced, list[Block]] | None:
    """The graph of `model` as blocks that follow each other, the last one up to the logits.

    Each but the first begins with the part that calls a chain of `small`; the first is what comes before all chains.
    None where torch.fx cannot follow either network, or where both are not made of the same operations. A few of the
    `images` [n, 3, h, w] show where a single value crosses.
    """
    traced = trace_graph(model, images[:1])
    if traced is None:
        return None
    try:
        rows = [_has_rows(traced, network, images[:PROBED_IMAGES].clone()) for network in (model, small)]
    except Exception:  # whatever the operations raise in a network of another structure
        return None
    chains = {name for name, m in small.named_modules(remove_duplicate=False) if isinstance(m, FactoredLayer)}
    alike = {node for node, shape in rows[0].items() if rows[1].get(node) == shape}
    return traced, _blocks(traced.graph, alike, chains)


def _blocks(graph: fx.Graph, rows: set[fx.Node], chains: set[str]) -> list[Block]:
    """Blocks that end at one of `rows`, each but the first with a part that calls one of `chains` in front."""
    order, constant = list(graph.nodes), _constants(graph)
    crossing, after = order[0], 1  # the last single value, and the position from which on nothing else is known
    starts, firsts = [order[0]], [1]  # of the blocks
    live: dict[fx.Node, int] = {}
    for i, node in enumerate(order):
        if node not in constant and node.users:
            live[node] = len(node.users)
        for used in node.all_input_nodes:
            if used in live:
                live[used] -= 1
                if not live[used]:
                    del live[used]
        if node.op == "call_module" and str(node.target) in chains and (after > firsts[-1] or len(starts) == 1):
            starts.append(crossing)
            firsts.append(after)
        if len(live) == 1 and (only := next(iter(live))) in rows:
            crossing, after = only, i + 1
    blocks = []
    for first, last, start, end in zip(
        firsts, [*firsts[1:], len(order)], starts, [*starts[1:], order[-1]], strict=True
    ):
        own = {node for node in order[first:last] if node not in constant}
        needed = own | _sources(own, constant)
        blocks.append(Block(tuple(node for node in order if node in needed), start, end))
    return blocks


def _constants(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose values do not come from the images."""
    constants: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op not in ("placeholder", "call_module", "output") and all(
            n in constants for n in node.all_input_nodes
        ):
            constants.add(node)
    return constants


def _sources(nodes: Iterable[fx.Node], constant: set[fx.Node]) -> set[fx.Node]:
    """The constants that `nodes` are computed from."""
    sources: set[fx.Node] = set()
    stack = list(nodes)
    while stack:
        for node in stack.pop().all_input_nodes:
            if node in constant and node not in sources:
                sources.add(node)
                stack.append(node)
    return sources


def _has_rows(traced: Traced, network: nn.Module, images: Tensor) -> dict[fx.Node, torch.Size]:
    """The nodes whose value is a tensor with one row an image, and the shapes of these."""
    values: Values = {traced.input: images}
    with inference(network):
        nodes = Runner(traced, network).run(list(traced.graph.nodes), values)
        return {node: values[node].shape for node in nodes if _is_row_per_image(values[node], len(images))}


def _is_row_per_image(value: Any, images: int) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 0 and len(value) == images


def columns(value: Tensor) -> Tensor:
    """Images [n, c, h, w] as rows [n·h·w, c], other values [..., c] as rows [..., c]; a number an image is a row."""
    value = value[:, None] if value.dim() == 1 else value
    value = value.movedim(1, -1) if value.dim() == 4 else value
    return value.reshape(-1, value.shape[-1])


def weighted(error: Tensor, moment: Tensor) -> Tensor:
    """The mean of eᵀΓe over the rows e of `error` [R, c]; Γ [c, c], or its diagonal [c]."""
    return ((error @ moment if moment.dim() == 2 else error * moment) * error).mean()


def gradient_moments(
    runner: Runner, blocks: Sequence[Block], images: Tensor, batch: int, seed: int, meaning: Meaning = CLASSES
) -> list[Tensor]:
    """Γ of each block but the first: the second moment of the gradient at its output, of a mean diagonal of 1.

    The gradient is that of −log p of what is drawn from the network's own answers to `images`: labels, or what else
    they mean. A tenth of Γ is the identity. Of wide outputs only the diagonal is taken.
    """
    seeds = iter(np.random.default_rng(seed).integers(2**63, size=len(images)).tolist())
    sums: list[Any] = [0.0 for _ in blocks[1:]]
    for part in images.split(batch):
        with torch.no_grad():
            x = run_block(runner, blocks[0], part.clone())
        outputs, x = [], x.detach().requires_grad_(True)
        with torch.enable_grad():
            for block in blocks[1:]:
                outputs.append(run_block(runner, block, x.clone()))
                x = outputs[-1]
            loss = meaning.sampled_loss(outputs[-1], [next(seeds) for _ in part])
            gradients = [columns(g) for g in torch.autograd.grad(loss, outputs)]
        for i, g in enumerate(gradients):
            sums[i] = sums[i] + (g.T @ g if g.shape[1] <= WIDEST_MOMENT else g.square().sum(0))
    return [_even(total) for total in sums]


def _even(total: Tensor) -> Tensor:
    """A second moment [c, c] or its diagonal [c] at a mean diagonal of 1, partly the same for all channels."""
    diagonal = total.diagonal() if total.dim() == 2 else total
    even = torch.ones_like(total) if total.dim() == 1 else torch.eye(len(total)).to(total)
    level = float(diagonal.mean())
    return (1 - EVEN_SHARE) * total / level + EVEN_SHARE * even if 0 < level < float("inf") else even
