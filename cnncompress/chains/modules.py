"""Chains as torch modules: the layer that runs its stages one after the other in the place of another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cnncompress.chains.compose import compose, last_computing
from cnncompress.chains.layers import Permute as Permute
from cnncompress.chains.layers import SplitConv2d as SplitConv2d
from cnncompress.chains.lowering import SPLIT, check_lowering, words
from cnncompress.chains.spec import Chain
from cnncompress.errors import CompressError, UnsupportedLayerError

NEW = ("aten::new_zeros", "aten::new_ones", "aten::new_empty", "aten::new_full")  # need no values
OWN = frozenset({*vars(nn.Module()), "_forward_pre_hooks_with_kwargs"})  # what torch itself keeps in a module


def plain_attributes(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module that are neither its modules, parameters and buffers nor torch's own."""
    return {name: value for name, value in vars(module).items() if name not in OWN}


class ValueReadError(CompressError):
    """The values of a layer that a chain replaced were asked for."""


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
        super().__init__(*(stage.module(split, **factory) for stage in chain))
        self.chain = chain
        self.lowering = lowering
        self.in_training_form = False

    def stand_in_for(self, layer: nn.Module) -> None:
        """Answer for the attributes of `layer`; of its weight and its bias, for all but their values."""
        shapes = {n: None if p is None else torch.empty_like(p, device="meta") for n, p in layer._parameters.items()}
        self._replaced = {**plain_attributes(layer), **shapes}

    def __getattr__(self, name: str) -> Any:
        """The attribute of the module, else that of the layer it replaced."""
        replaced = self.__dict__.get("_replaced", {})
        if name in replaced and name not in self._modules:
            value = replaced[name]
            if not isinstance(value, Tensor) or not value.is_meta:
                return value
            own = next(self.parameters())
            return Tensor._make_wrapper_subclass(Absent, value.shape, dtype=own.dtype, device=own.device)
        return super().__getattr__(name)

    @property
    def weighted(self) -> list[nn.Module]:
        """The modules with parameters of their own, in order."""
        return [m for m in self.modules() if next(m.parameters(recurse=False), None) is not None]

    def kernels(self) -> list[Tensor]:
        """One tensor a stage: a kernel [F, C/g, kh, kw] (a Linear's as 1×1) or a permutation's index."""
        return [stage.read_kernel(module) for stage, module in zip(self.chain, self, strict=True)]

    def write_kernels(self, kernels: Sequence[Tensor]) -> None:
        """Put one tensor a stage into the modules; biases become zero."""
        for stage, module, kernel in zip(self.chain, self, kernels, strict=True):
            stage.write_kernel(module, kernel)

    def start_training(self) -> None:
        """Give every stage the parameters that it trains with; the layer computes the same."""
        changed = [stage.start_training(module) for stage, module in zip(self.chain, self, strict=True)]
        self.in_training_form = any(changed)

    def fold(self) -> None:
        """Undo `start_training`: the tensors that are stored, with the values that training gave them."""
        for stage, module in zip(self.chain, self, strict=True):
            stage.fold(module)
        self.in_training_form = False

    def to_dense(self) -> Tensor:
        """The kernel [F, C, kh, kw] of one group that does what the chain does."""
        return compose(self.chain, self.kernels())

    def offset(self) -> Tensor | float:
        """The bias of the last stage, [F]; zeros where it has none."""
        last, order = self._end()
        bias = self.chain[last].read_bias(self[last])
        return 0.0 if bias is None else bias[order.to(bias.device)]

    def add_to_bias(self, shift: Tensor) -> None:
        """Add `shift` [F] to the output by way of the last stage's bias; UnsupportedLayerError where it has none."""
        last, order = self._end()
        if not self.chain[last].bias:
            raise UnsupportedLayerError("the chain has no bias to put a constant into; plan it with one")
        shift = torch.empty_like(shift).index_copy_(0, order.to(shift.device), shift)
        self.chain[last].add_to_bias(self[last], shift)

    def _end(self) -> tuple[int, Tensor]:
        """The place of the last stage that computes, and the channel of it that each output is."""
        last = last_computing(self.chain)
        order = torch.arange(self.chain[last].out_channels)
        for stage, module in list(zip(self.chain, self, strict=True))[last + 1 :]:
            order = order[stage.read_kernel(module).to(order.device)]
        return last, order
