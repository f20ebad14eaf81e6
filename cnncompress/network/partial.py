"""A forward pass that ends once a module has been called."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple

from torch import Tensor, nn


class Called(NamedTuple):
    """The arguments of a module's call, and what it gave."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


class _Reached(Exception):  # noqa: N818
    """The module has been called."""


def first_call(network: nn.Module, module: nn.Module, images: Tensor) -> Called:
    """The first call of a `module` of the network on images [n, c, H, W]; the network runs no further.

    IndexError where it is not called.
    """
    calls: list[Called] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls.append(Called(args, kwargs, output))
        raise _Reached

    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        with suppress(_Reached):
            network(images.clone())  # it may write into its input
    finally:
        handle.remove()
    return calls[0]
