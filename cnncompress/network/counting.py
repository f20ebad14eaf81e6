"""Multiply-accumulates of a forward pass, the same whatever kernels torch picks and on whatever device it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

Shape = tuple[int, ...]


class MacCounter:
    """The multiply-accumulates counted so far by `counting_macs`."""

    def __init__(self, flops: FlopCounterMode) -> None:
        self._flops = flops

    @property
    def total(self) -> int:
        """All multiply-accumulates of matrix products, attention and convolutions."""
        return self._flops.get_total_flops() // 2

    def by_module(self, model: nn.Module) -> dict[str, dict[str, int]]:
        """Multiply-accumulates of each module of `model` without its submodules: by name, then by operator."""
        counts = {
            path: {str(op): n // 2 for op, n in ops.items()} for path, ops in self._flops.get_flop_counts().items()
        }
        root = type(model).__name__
        paths = {name: f"{root}.{name}" if name else root for name, _ in model.named_modules()}
        by_name = {name: dict(counts.get(path, {})) for name, path in paths.items()}
        for name in filter(None, paths):
            around = name.rpartition(".")[0]
            while around and paths[around] not in counts:  # a container that is not called itself
                around = around.rpartition(".")[0]
            for op, count in counts.get(paths[name], {}).items():
                by_name[around][op] = by_name[around].get(op, 0) - count
        return {name: {op: n for op, n in own.items() if n > 0} for name, own in by_name.items()}


@contextmanager
def counting_macs() -> Iterator[MacCounter]:
    """Count the multiply-accumulates of what runs inside the `with` block.

    Fused operators hide their products from `torch.utils.flop_counter`, so attention takes its plain form meanwhile,
    as do transformer layers and recurrent layers. Products that the counter has no formula for are given one.
    """
    mkldnn: Any = torch.backends.mkldnn
    before = torch.backends.mha.get_fastpath_enabled(), mkldnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    mkldnn.enabled = False
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=_formulas()) as flops:
            yield MacCounter(flops)
    finally:
        torch.backends.mha.set_fastpath_enabled(before[0])
        mkldnn.enabled = before[1]


def _attention(query: Shape, key: Shape, value: Shape, *args: Any, **kwargs: Any) -> int:
    """Both products, [..., q, d] @ [..., d, k] and [..., q, k] @ [..., k, v], for every head of the queries."""
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _matrix_vector(matrix: Shape, *args: Any, **kwargs: Any) -> int:
    return 2 * prod(matrix)


def _added_matrix_vector(bias: Shape, matrix: Shape, *args: Any, **kwargs: Any) -> int:
    return 2 * prod(matrix)


def _added_batch(bias: Shape, left: Shape, right: Shape, *args: Any, **kwargs: Any) -> int:
    return 2 * prod(left) * right[-1]


def _bilinear(left: Shape, weight: Shape, *args: Any, **kwargs: Any) -> int:
    return 2 * left[0] * prod(weight)


def _deformable(image: Shape, weight: Shape, *args: Any, out_shape: Shape, **kwargs: Any) -> int:
    return 2 * out_shape[0] * prod(out_shape[2:]) * prod(weight)


# What a network may still call by name, or force with a backend of its own.
_FORMULAS: dict[str, Callable[..., int]] = {
    "aten._scaled_dot_product_flash_attention_for_cpu": _attention,
    "aten._scaled_dot_product_fused_attention_overrideable": _attention,
    "aten.mv": _matrix_vector,
    "aten.dot": _matrix_vector,
    "aten.vdot": _matrix_vector,
    "aten.addmv": _added_matrix_vector,
    "aten.addbmm": _added_batch,
    "aten._trilinear": _bilinear,
    "torchvision.deform_conv2d": _deformable,
}


def _formulas() -> dict[Any, Callable[..., int]]:
    """The formulas of those operators that this torch and its extensions have."""
    formulas = {}
    for name, formula in _FORMULAS.items():
        namespace, operator = name.split(".")
        packet = getattr(getattr(torch.ops, namespace), operator, None)
        if packet is not None:
            formulas[packet] = formula
    return formulas
