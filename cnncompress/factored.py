"""Where chains meet torch modules: a layer's spec, its calls, the chain as a module, the swap by name."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from cnncompress.decompositions import compose
from cnncompress.errors import CompressError, UnsupportedLayerError
from cnncompress.spec import Call, Chain, ConvSpec, LayerPlan, Pair, Permutation, Plan, Preprocessing, Stage, as_pair


def spec_of(module: nn.Module) -> ConvSpec:
    """The geometry of a Conv2d or Linear; UnsupportedLayerError for any other module."""
    if isinstance(module, nn.Linear):
        return ConvSpec(module.in_features, module.out_features, bias=module.bias is not None, linear=True)
    if not isinstance(module, nn.Conv2d):
        raise UnsupportedLayerError(f"{type(module).__name__} is neither a Conv2d nor a Linear")
    padding: Pair | Literal["same"] = (0, 0)
    if module.padding == "same":
        padding = "same"
    elif not isinstance(module.padding, str):
        padding = as_pair(module.padding)
    return ConvSpec(
        module.in_channels,
        module.out_channels,
        as_pair(module.kernel_size),
        as_pair(module.stride),
        padding,
        as_pair(module.dilation),
        module.groups,
        module.bias is not None,
        module.padding_mode,
    )


def refuse_module(module: nn.Conv2d | nn.Linear) -> str | None:
    """Why a Conv2d or Linear cannot be swapped whatever the method, or None."""
    own: Any = type(module)
    if hasattr(module, "parametrizations"):
        return "parametrized: remove the parametrization from its weight first"
    plain = (
        own.forward is nn.Linear.forward
        if isinstance(module, nn.Linear)
        else (own.forward is nn.Conv2d.forward and own._conv_forward is nn.Conv2d._conv_forward)
    )
    if not plain:
        return f"{own.__name__} has a forward pass of its own"
    if module._forward_hooks or module._forward_pre_hooks:
        return "hooks are attached to it, which a chain would lose"
    if not module.weight.is_floating_point():
        return f"its weight is {module.weight.dtype}, not floating point"
    return None


def layers_of(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Every Conv2d and Linear by its first name in `named_modules`, shared modules once."""
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; every module's own train/eval state comes back afterwards."""
    states = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in states:
            module.training = training


def forward(model: nn.Module, inputs: Tensor) -> Tensor:
    """The logits of a network; CompressError in one line if its forward pass fails or returns no tensor."""
    try:
        output = model(inputs)
    except CompressError:
        raise
    except Exception as error:  # whatever somebody else's code raises
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        shape = "×".join(map(str, inputs.shape))
        raise CompressError(
            f"the forward pass of {type(model).__name__} fails on an input of {shape}: {reason}"
        ) from error
    return logits(output)


def logits(output: Any) -> Tensor:
    """The logits in what a classifier returns: a tensor, or a tuple with `logits` first (auxiliary heads)."""
    output = getattr(output, "logits", output)
    if isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise CompressError(f"the network returns a {type(output).__name__}, not a tensor of logits")
    return output


def trace(model: nn.Module, example: Tensor) -> dict[str, Call]:
    """How the network uses its layers on the first image of `example`, in the order of first calls.

    A layer that is not in the result is not called as a module (its weight may be used directly, as attention does).
    """
    layers = layers_of(model)
    sizes: dict[str, list[tuple[int, int]]] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else kwargs["input"]
            linear = isinstance(module, nn.Linear)
            if linear:
                sizes.setdefault(name, []).append((x.numel() // x.shape[-1], 1))
            else:  # a network may fold patches of one image into the batch
                batch = x.shape[0] if x.dim() == 4 else 1
                sizes.setdefault(name, []).extend([(x.shape[-2], x.shape[-1])] * batch)

        return hook

    handles = [module.register_forward_pre_hook(watch(name), with_kwargs=True) for name, module in layers.items()]
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused transformer layers are invisible to hooks
    try:
        with inference(model):
            forward(model, example[:1])
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for handle in handles:
            handle.remove()
    return {n: Call(i, spec_of(layers[n]), tuple(s)) for i, (n, s) in enumerate(sizes.items())}


class Permute(nn.Module):
    """A fixed channel permutation, on dimension 1 of images or the last of vectors."""

    index: Tensor

    def __init__(self, channels: int, linear: bool = False, device: Any = None) -> None:
        super().__init__()
        self.register_buffer("index", torch.arange(channels, device=device))
        self.dim = -1 if linear else 1

    def forward(self, x: Tensor) -> Tensor:
        """`x` with its channels reordered."""
        return x.index_select(self.dim, self.index)


def build_stage(stage: Stage, **factory: Any) -> nn.Module:
    """The plain torch module of a stage."""
    if isinstance(stage, Permutation):
        return Permute(stage.channels, stage.linear, factory.get("device"))
    if stage.linear:
        return nn.Linear(stage.in_channels, stage.out_channels, stage.bias, **factory)
    return nn.Conv2d(
        stage.in_channels,
        stage.out_channels,
        stage.kernel_size,
        stage.stride,
        stage.padding,
        stage.dilation,
        stage.groups,
        stage.bias,
        cast(Any, stage.padding_mode),
        **factory,
    )


class FactoredLayer(nn.Sequential):
    """A chain of plain layers in the place of one."""

    def __init__(self, chain: Chain, **factory: Any) -> None:
        super().__init__(*(build_stage(stage, **factory) for stage in chain))
        self.chain = chain

    @property
    def weighted(self) -> list[nn.Conv2d | nn.Linear]:
        """The modules with weights, in order."""
        return [m for m in self if isinstance(m, nn.Conv2d | nn.Linear)]

    def kernels(self) -> list[Tensor]:
        """One tensor a stage: a kernel [F, C/g, kh, kw] (a Linear's as 1×1) or a permutation's index."""
        return [
            m.index if isinstance(m, Permute) else m.weight.detach().reshape(spec_of(m).weight_shape)  # type: ignore
            for m in self
        ]

    def to_dense(self) -> Tensor:
        """The kernel [F, C, kh, kw] of one group that does what the chain does."""
        return compose(self.chain, self.kernels())

    def add_to_bias(self, shift: Tensor) -> None:
        """Add `shift` [F] to the output by way of the last stage's bias; UnsupportedLayerError where it has none."""
        bias = self.weighted[-1].bias
        if bias is None:
            raise UnsupportedLayerError("the chain has no bias to put a constant into; plan it with one")
        order = torch.arange(len(shift), device=shift.device)  # channel of the last stage that each output comes from
        for module in list(self)[list(self).index(self.weighted[-1]) + 1 :]:
            order = order[cast(Tensor, module.index).to(order.device)]
        with torch.no_grad():
            bias += torch.empty_like(shift).index_copy_(0, order, shift).to(bias)


def build_chain(plan: LayerPlan, kernels: Sequence[Tensor] | None, original: nn.Conv2d | nn.Linear) -> FactoredLayer:
    """The chain of `plan` with these kernels, in the original layer's dtype, device, memory format and mode.

    `kernels` None leaves the chain without values, on the meta device.
    """
    weight, bias = original.weight, original.bias
    layer = FactoredLayer(plan.chain, device="meta", dtype=weight.dtype)
    if kernels is not None:
        layer = layer.to_empty(device=weight.device)
        with torch.no_grad():
            for module, kernel in zip(layer, kernels, strict=True):
                target = cast(Tensor, module.index if isinstance(module, Permute) else module.weight)
                target.copy_(kernel.reshape(target.shape))
            last = layer.weighted[-1].bias
            if last is not None:
                last.zero_()
            if bias is not None:
                layer.add_to_bias(bias)
        if weight.dim() == 4 and is_channels_last(weight):
            layer = layer.to(memory_format=torch.channels_last)
    layer.requires_grad_(weight.requires_grad)
    return layer.train(original.training)


def is_channels_last(tensor: Tensor) -> bool:
    """True for a four-dimensional tensor whose strides say channels_last and nothing else."""
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def swap(model: nn.Module, name: str, replacement: nn.Module) -> None:
    """Put `replacement` wherever the module called `name` stands, under all its names. Changes `model`."""
    old = model.get_submodule(name)
    if old is model:
        raise UnsupportedLayerError("the network is a single layer; wrap it in a Sequential")
    for parent in list(model.modules()):
        for child, module in list(parent._modules.items()):
            if module is old:
                setattr(parent, child, replacement)


def apply_plan(model: nn.Module, plan: Plan, kernels: Mapping[str, Sequence[Tensor]] | None = None) -> nn.Module:
    """Swap the chains of `plan` into `model`, in the plan's order; layers without kernels stay on the meta device."""
    for name, layer_plan in plan.layers.items():
        original = model.get_submodule(name)
        if not isinstance(original, nn.Conv2d | nn.Linear):
            raise UnsupportedLayerError(f"{name} is a {type(original).__name__}, not a Conv2d or Linear")
        swap(model, name, build_chain(layer_plan, kernels[name] if kernels else None, original))
    return model


def clone(model: nn.Module) -> nn.Module:
    """A copy that shares nothing with the original."""
    return copy.deepcopy(model)


@dataclass
class Provenance:
    """Where a compressed network comes from: enough to build it again and to report on it.

    `source` is `models.ModelSource`; `plan` holds every swap so far, in order; `errors` the relative error of each
    decomposed layer in the plan's metric; `rises` the predicted rise of the loss of the last decomposition by layer, in
    nats per image, where the metric predicts it.
    """

    source: Any = None
    preprocessing: Preprocessing | None = None
    plan: Plan = field(default_factory=Plan)
    errors: dict[str, float] = field(default_factory=dict)
    rises: dict[str, float] = field(default_factory=dict)


def provenance(model: nn.Module) -> Provenance | None:
    """What `attach` stored with a network, or None."""
    return getattr(model, "_cnncompress", None)


def attach(model: nn.Module, value: Provenance) -> nn.Module:
    """Store a provenance with a network (a plain attribute: deep copies carry it, state dicts do not)."""
    model._cnncompress = value  # type: ignore[assignment]
    return model
