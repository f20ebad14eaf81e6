"""What the tests of decompositions share: layers of every geometry, and the shortest way to a chain."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from cnncompress.chains.lowering import lower_kernels
from cnncompress.chains.modules import FactoredLayer
from cnncompress.chains.plan import LayerPlan, Plan
from cnncompress.chains.spec import Call, ConvSpec
from cnncompress.decompositions import get_method
from cnncompress.metrics import REGISTRY
from cnncompress.metrics.statistics import LayerStatistics
from cnncompress.network.copying import clone
from cnncompress.network.kinds import spec_of
from cnncompress.network.layers import layers_of
from cnncompress.network.swap import apply_plan, build_chain
from cnncompress.planning import Choice, Kept, plan, plan_layer

SIZE = (12, 13)
METRIC_NAMES = list(REGISTRY)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def relative(approximation: Tensor, exact: Tensor) -> float:
    exact, delta = exact.detach().double(), (approximation.detach().double() - exact.detach().double())
    return float(torch.linalg.vector_norm(delta) / torch.linalg.vector_norm(exact))


def lowest_by_lbfgs(loss: Callable[..., Tensor], tensors: Sequence[Tensor], iterations: int, change: float) -> float:
    """What L-BFGS brings a loss of some tensors, which it moves from where they are, down to.

    It stops where the loss moves by less than `change`.
    """
    tensors = [x.requires_grad_() for x in tensors]
    optimiser = torch.optim.LBFGS(tensors, max_iter=iterations, line_search_fn="strong_wolfe", tolerance_change=change)

    def step() -> Tensor:
        optimiser.zero_grad()
        value = loss(*tensors)
        value.backward()
        return value

    optimiser.step(step)
    return float(loss(*tensors).detach())


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Seeded values for all parameters of a module."""
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.copy_(randn(*parameter.shape, seed=seed + i))
    return module


def decide(layer: nn.Conv2d | nn.Linear, method: str, rank=1.0, force: bool = True, size=SIZE) -> LayerPlan | Kept:
    spec = spec_of(layer)
    return plan_layer(Call(0, spec, ((size[0], 1) if spec.linear else size,)), Choice(method, rank), force)


def factored(layer: nn.Conv2d | nn.Linear, decision: LayerPlan) -> FactoredLayer:
    method = get_method(decision.method, **decision.options)
    return build_chain(
        decision, lowered(decision, method.factorize(layer.weight, spec_of(layer), decision.rank)), layer
    )


def lowered(decision: LayerPlan, kernels: list[Tensor]) -> list[Tensor]:
    """The kernels of a method's own chain as those of the chain that runs."""
    stages = get_method(decision.method, **decision.options).stages(decision.spec, decision.rank)
    return lower_kernels(stages, kernels, decision.lowering)


def compress(model: nn.Module, example: Tensor, **request) -> tuple[nn.Module, Plan]:
    """A compressed copy of a network, and its plan."""
    decisions = plan(model, example, **request)
    modules = layers_of(model)
    kernels = {
        name: lowered(p, get_method(p.method, **p.options).factorize(modules[name].weight, p.spec, p.rank))
        for name, p in decisions.layers.items()
    }
    return apply_plan(clone(model), decisions, kernels), decisions


def made_up_statistics(spec: ConvSpec, rows: int = 400, seed: int = 0, decay: float = 2.0) -> LayerStatistics:
    """Statistics of correlated random inputs and gradients; the spread of their variances is e^`decay`."""
    g, F = spec.groups, spec.out_channels
    n = spec.weights // F

    def correlated(m: int, count: int, seed: int) -> Tensor:
        scales = torch.exp(-decay * torch.linspace(0, 1, m, dtype=torch.float64))
        return randn(count, m, seed=seed) * scales @ randn(m, m, seed=seed + 1) / m**0.5

    x = torch.stack([correlated(n, rows, seed + 2 * i) for i in range(g)])
    gradients = correlated(F, 300, seed + 100)
    centred = x - x.mean(1, keepdim=True)
    return LayerStatistics(
        images=300,
        rows=rows,
        mean=randn(g, n, seed=seed + 200).float(),
        moment=(centred.mT @ centred / rows).float(),
        gradient=(gradients.mT @ gradients / 300).float(),
        sensitivity=torch.exp(decay * randn(*spec.weight_shape, seed=seed + 300)).float(),
    )


@st.composite
def convolutions(draw, dtypes=(torch.float64,)) -> nn.Conv2d:
    """A Conv2d of any geometry that fits an input of `SIZE`."""
    pair = st.tuples(st.integers(1, 2), st.integers(1, 2))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    padding = draw(st.sampled_from([0, 1, (2, 1), (0, 2), "same", "valid"]))
    layer = nn.Conv2d(
        groups * draw(st.integers(1, 4)),
        groups * draw(st.integers(1, 5)),
        draw(st.sampled_from([(3, 3), (1, 1), (1, 3), (3, 1), (2, 2), (5, 3), (4, 2)])),
        stride=1 if padding == "same" else draw(pair),
        padding=padding,
        dilation=draw(pair),
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
        dtype=draw(st.sampled_from(dtypes)),
    )
    randomize(layer, draw(st.integers(0, 99)))
    return layer


def images(layer: nn.Conv2d, n: int = 2) -> Tensor:
    return randn(n, layer.in_channels, *SIZE, seed=7, dtype=layer.weight.dtype)
