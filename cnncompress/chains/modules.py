"""Chains as torch modules: the plain module of each stage, and the layer that runs them one after the other."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from cnncompress.chains.compose import compose
from cnncompress.chains.lowering import SPLIT, check_lowering, words
from cnncompress.chains.spec import Chain, ConvSpec, Pair, Permutation, Stage, as_pair
from cnncompress.errors import CompressError, UnsupportedLayerError

NEW = ("aten::new_zeros", "aten::new_ones", "aten::new_empty", "aten::new_full")  # need no values
OWN = frozenset({*vars(nn.Module()), "_forward_pre_hooks_with_kwargs"})  # what torch itself keeps in a module


def plain_attributes(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module that are neither its modules, parameters and buffers nor torch's own."""
    return {name: value for name, value in vars(module).items() if name not in OWN}


class ValueReadError(CompressError):
    """The values of a layer that a chain replaced were asked for."""


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


class SplitConv2d(nn.Conv2d):
    """A grouped convolution that runs as one dense convolution a group; its tensors are those of a Conv2d."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input = pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        biases = [None] * self.groups if bias is None else bias.chunk(self.groups)
        parts = zip(input.chunk(self.groups, -3), weight.chunk(self.groups), biases, strict=True)
        return torch.cat([conv2d(x, w, b, self.stride, padding, self.dilation) for x, w, b in parts], -3)


def build_stage(stage: Stage, split: bool = False, **factory: Any) -> nn.Module:
    """The plain torch module of a stage; with `split`, grouped convolutions run group by group."""
    if isinstance(stage, Permutation):
        return Permute(stage.channels, stage.linear, factory.get("device"))
    if stage.linear:
        return nn.Linear(stage.in_channels, stage.out_channels, stage.bias, **factory)
    return (SplitConv2d if split and stage.groups > 1 and not stage.depthwise else nn.Conv2d)(
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


class Absent(Tensor):
    """The weight or bias of a layer that was replaced: it has a shape, a dtype and a device, but no values."""

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Absent({tuple(self.shape)}, {self.dtype}, {self.device})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():  # its presence alone keeps transformers from their fused kernels
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func._schema.name in NEW:
            return func(torch.empty((), dtype=args[0].dtype, device=args[0].device), *args[1:], **(kwargs or {}))
        raise ValueReadError(f"the values of a replaced layer are read ({func._schema.name.removeprefix('aten::')})")


class FactoredLayer(nn.Sequential):
    """A chain of plain layers in the place of one; `lowering` says how it runs (see `lowering.py`).

    After `stand_in_for` it answers for the attributes of the layer that it replaced, too.
    """

    def __init__(self, chain: Chain, lowering: str = "", **factory: Any) -> None:
        check_lowering(lowering)
        split = SPLIT in words(lowering)
        super().__init__(*(build_stage(stage, split, **factory) for stage in chain))
        self.chain = chain
        self.lowering = lowering

    def stand_in_for(self, layer: nn.Conv2d | nn.Linear) -> None:
        """Answer for the attributes of `layer`; of its weight and its bias, for all but their values."""
        shapes = {n: None if p is None else torch.empty_like(p, device="meta") for n, p in layer._parameters.items()}
        self._replaced = {**plain_attributes(layer), **shapes}

    def __getattr__(self, name: str) -> Any:
        """What `nn.Module` finds, else what the replaced layer had."""
        replaced = self.__dict__.get("_replaced", {})
        if name in replaced and name not in self._modules:
            value = replaced[name]
            if not isinstance(value, Tensor) or not value.is_meta:
                return value
            own = self.weighted[0].weight
            return Tensor._make_wrapper_subclass(Absent, value.shape, dtype=own.dtype, device=own.device)
        return super().__getattr__(name)

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

    def offset(self) -> Tensor | float:
        """What the last stage's bias adds to the output, [F]; 0 where it has none."""
        bias = self.weighted[-1].bias
        return 0.0 if bias is None else bias.detach()[self._order(len(bias))]

    def _order(self, count: int) -> Tensor:
        """The channel of the last stage that each of `count` outputs comes from."""
        order = torch.arange(count, device=self.weighted[-1].weight.device)
        for module in list(self)[list(self).index(self.weighted[-1]) + 1 :]:
            order = order[cast(Tensor, module.index).to(order.device)]
        return order

    def add_to_bias(self, shift: Tensor) -> None:
        """Add `shift` [F] to the output by way of the last stage's bias; UnsupportedLayerError where it has none."""
        bias = self.weighted[-1].bias
        if bias is None:
            raise UnsupportedLayerError("the chain has no bias to put a constant into; plan it with one")
        order = self._order(len(shift)).to(shift.device)
        with torch.no_grad():
            bias += torch.empty_like(shift).index_copy_(0, order, shift).to(bias)
