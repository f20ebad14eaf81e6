"""The forward passes that a step of a training takes, of a network or of its teacher: as they are, or compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from cnncompress.errors import CompressError, is_out_of_memory
from cnncompress.finetuning.attention import watched
from cnncompress.network.compiling import own_code
from cnncompress.network.run import forward
from cnncompress.text import first_line


class NotCompiledError(CompressError):
    """The compiler does not take a network."""


class Passes:
    """Forward passes of a network: its answers, and what the modules `places` give.

    Compiled ones are taken between `compile` and `release`. The network itself stays as it is: whatever else calls it,
    and its state dict, know nothing of them.
    """

    def __init__(self, network: nn.Module, places: Sequence[str] = ()) -> None:
        self.network, self.places = network, places
        self._call: Callable[..., Any] | None = None
        self._features: list[Any] = []
        self._watching = ExitStack()

    def __call__(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The answers to images [n, c, H, W], and the outputs of the places."""
        if self._call is None:
            return self.plain(images)
        self.network._compiled_call_impl = self._call
        try:
            return forward(self.network, images), list(self._features)
        finally:
            self.network._compiled_call_impl = None
            self._features[:] = [None] * len(self._features)  # they would keep the graph of this step

    def plain(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The same, not compiled."""
        with watched(self.network, self.places) as features:
            return forward(self.network, images), features

    def compile(self) -> None:
        """Have calls compiled, each when its shapes are first seen; they raise NotCompiledError where that fails."""
        # One set of hooks and one list for all calls: compiled code does not look whether hooks have changed.
        self._features = self._watching.enter_context(watched(self.network, self.places))
        self._call = _compiled(self.network)

    def release(self) -> None:
        """Have calls run as they are again."""
        self._watching.close()
        self._call, self._features = None, []


def _compiled(network: nn.Module) -> Callable[..., Any]:
    """The call of a network, compiled for the shapes that it is given."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return network._call_impl(*args, **kwargs)

    run = torch.compile(own_code(call), dynamic=False)

    def told(*args: Any, **kwargs: Any) -> Any:
        try:
            return run(*args, **kwargs)
        except Exception as error:  # the compiler's, or somebody else's code
            if is_out_of_memory(error):
                raise
            cause = getattr(error, "inner_exception", error)  # of an error that tells the name of the backend alone
            raise NotCompiledError(
                f"torch.compile does not take {type(network).__name__}: {first_line(cause)}"
            ) from error

    return told
