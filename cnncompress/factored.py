"""Where chains meet networks: the calls of layers, the chain in a layer's place, the swap by name, provenance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from cnncompress.copying import clone as clone
from cnncompress.copying import undone
from cnncompress.decompositions import get_method
from cnncompress.errors import CompressError, UnsupportedLayerError
from cnncompress.lowering import lower_kernels
from cnncompress.modules import FactoredLayer, Permute, SplitConv2d, spec_of
from cnncompress.running import forward as forward
from cnncompress.running import logits as logits
from cnncompress.running import run
from cnncompress.spec import Call, ConvSpec, LayerPlan, Plan, Preprocessing

MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def refuse_module(module: nn.Conv2d | nn.Linear) -> str | None:
    """Why a Conv2d or Linear cannot be swapped whatever the method, or None."""
    own: Any = type(module)
    if hasattr(module, "parametrizations"):
        return "parametrized: remove the parametrization from its weight first"
    plain = (
        own.forward is nn.Linear.forward
        if isinstance(module, nn.Linear)
        else own is SplitConv2d or (own.forward is nn.Conv2d.forward and own._conv_forward is nn.Conv2d._conv_forward)
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
    """Eval mode without gradients; what forward passes leave behind in the network is undone afterwards (`undone`)."""
    with undone(model), torch.no_grad():
        model.eval()
        yield


def trace(model: nn.Module, example: Tensor) -> dict[str, Call]:
    """How the network uses its layers on the first image of `example`, in the order of first calls.

    A layer that is not in the result is not called as a module (its weight may be used directly, as attention does).
    CompressError if the forward pass fails, and for TorchScript, whose layers cannot be replaced.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise CompressError("TorchScript has no layers that can be replaced: give the network that it was made from")
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
            run(model, example[:1])
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for handle in handles:
            handle.remove()
    return {n: Call(i, spec_of(layers[n]), tuple(s)) for i, (n, s) in enumerate(sizes.items())}


def build_chain(plan: LayerPlan, kernels: Sequence[Tensor] | None, original: nn.Conv2d | nn.Linear) -> FactoredLayer:
    """The chain of `plan` with these kernels, in the original layer's dtype, device, memory format and mode.

    The kernels are those of the plan's chain or, where it has a lowering, those that its method gives at its rank.
    `kernels` None leaves the chain without values, on the meta device.
    """
    weight, bias = original.weight, original.bias
    layer = FactoredLayer(plan.chain, plan.lowering, device="meta", dtype=weight.dtype)
    if kernels is not None:
        layer = layer.to_empty(device=weight.device)
        with torch.no_grad():
            for module, kernel in zip(layer, _lowered(plan, kernels), strict=True):
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
    layer.stand_in_for(original)
    return layer.train(original.training)


def _lowered(plan: LayerPlan, kernels: Sequence[Tensor]) -> Sequence[Tensor]:
    """The kernels in the shapes of the plan's chain."""
    expected = [stage.weights if isinstance(stage, ConvSpec) else stage.channels for stage in plan.chain]
    if not plan.lowering or [kernel.numel() for kernel in kernels] == expected:
        return kernels
    plain = get_method(plan.method, **plan.options).stages(plan.spec, plan.rank)
    return lower_kernels(plain, kernels, plan.lowering)


def is_channels_last(tensor: Tensor) -> bool:
    """True for a four-dimensional tensor whose strides say channels_last and nothing else."""
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def memory_format_of(model: nn.Module) -> str:
    """The order in memory of a network's kernels, `contiguous` or `channels_last`.

    Kernels of one row and column, or of one channel, are in both at once: where all are, its provenance tells.
    """
    kernels = [p for p in model.parameters() if p.dim() == 4]
    if any(is_channels_last(kernel) for kernel in kernels):
        return "channels_last"
    known = provenance(model)
    both = all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    return (known.plan.memory_format if known and both else "") or "contiguous"


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
    return to_memory_format(model, plan.memory_format)


def to_memory_format(model: nn.Module, memory_format: str) -> nn.Module:
    """The network itself, put in `contiguous` or `channels_last`, which its provenance then tells; "" leaves it.

    ValueError for any other word, CompressError where a tensor cannot be in that order.
    """
    if not memory_format:
        return model
    if memory_format not in MEMORY_FORMATS:
        raise ValueError(f"unknown memory format {memory_format!r}")
    try:
        model.to(memory_format=MEMORY_FORMATS[memory_format])  # type: ignore[call-overload]
    except RuntimeError as error:
        raise CompressError(f"{type(model).__name__} cannot be put in {memory_format}: {error}") from error
    known = provenance(model) or Provenance()
    return attach(model, replace(known, plan=replace(known.plan, memory_format=memory_format)))


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
