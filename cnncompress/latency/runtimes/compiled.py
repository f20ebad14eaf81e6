"""PyTorch's compiler: what a network runs as where one line is added to the program that calls it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING

from cnncompress.latency.runtimes.base import NO_BF16, register
from cnncompress.latency.runtimes.eager import Torch, placed
from cnncompress.processor import features

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cnncompress.latency.setting import TimingSetting

COMPILERS = ("g++", "clang++", "c++", "cl")
BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # of x86 and ARM


@register
class TorchCompile(Torch):
    """Inductor, with the weights as constants."""

    name = "torch-compile"
    precisions = ("fp32", "bf16")
    devices = ("cpu",)
    chains_in = "torch"
    shows_layers = False

    def missing(self) -> str:
        """The compiler, which Inductor looks for under the same names."""
        if any(map(shutil.which, filter(None, (os.environ.get("CXX"), *COMPILERS)))):
            return ""
        return "Inductor needs a C++ compiler; install g++ or clang++, or set CXX to one"

    def lacks(self, precision: str) -> str:
        """Where the system tells that the processor has no instructions for it."""
        known = features()
        return NO_BF16 if precision == "bf16" and known and not known & BF16 else ""

    def prepare(self, network: nn.Module, inputs: Tensor, setting: TimingSetting) -> Callable[[], object]:
        """The network's forward pass for inputs of this shape, compiled."""
        import torch
        from torch._inductor import config

        from cnncompress.network.onnx import foreign

        network, inputs = placed(network, inputs, setting)
        run = torch.compile(_own_forward(network), dynamic=False, options={"freezing": True})
        # in this process: the pool of compilers would wait beside whatever is timed
        with foreign("torch.compile", "run"), config.patch(compile_threads=1):
            run(inputs)
        return partial(run, inputs)


def _own_forward(network: nn.Module) -> Callable[[Tensor], object]:
    """A forward pass with code of its own: what is compiled is kept by code, and looked through at every call."""

    def run(x: Tensor) -> object:
        return network(x)

    return FunctionType(run.__code__.replace(), run.__globals__, run.__name__, None, run.__closure__)
