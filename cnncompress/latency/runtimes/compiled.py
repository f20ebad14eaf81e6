"""PyTorch's compiler: what a network runs as where one line is added to the program that calls it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from cnncompress.latency.runtimes.base import NO_BF16, register
from cnncompress.latency.runtimes.eager import Torch, placed
from cnncompress.network.compiling import missing_compiler, own_code
from cnncompress.processor import features

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cnncompress.latency.setting import TimingSetting

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
        """The compiler."""
        return missing_compiler()

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

        def forward(x: Tensor) -> object:
            return network(x)

        run = torch.compile(own_code(forward), dynamic=False, options={"freezing": True})
        # in this process: the pool of compilers would wait beside whatever is timed
        with foreign("torch.compile", "run"), config.patch(compile_threads=1):
            run(inputs)
        return partial(run, inputs)
