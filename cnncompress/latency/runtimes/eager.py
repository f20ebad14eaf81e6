"""PyTorch, operation by operation: what runs a network that is loaded and called."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from cnncompress.latency.runtimes.base import LayerClock, Runtime, register

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from cnncompress.latency.setting import TimingSetting


@register
class Torch(Runtime):
    """Eager PyTorch."""

    name = "torch"
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16", "fp16", "fp64")
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    memory_formats = ("contiguous", "channels_last")
    shows_layers = True

    def version(self) -> str:
        """That of torch."""
        import torch

        return torch.__version__

    def prepare(self, network: nn.Module, inputs: Tensor, setting: TimingSetting) -> Callable[[], object]:
        """The network's forward pass."""
        from cnncompress.network.run import run

        return partial(run, *placed(network, inputs, setting))

    def layer_clock(self, network: nn.Module, inputs: Tensor, setting: TimingSetting) -> LayerClock:
        """Hooks on the layers: on a GPU every one is waited for, so they add up to more than the network."""
        return _HookedLayers(*placed(network, inputs, setting))

    @contextmanager
    def running(self, setting: TimingSetting) -> Iterator[None]:
        """Without gradients, with the setting's CPU threads."""
        import torch

        before = torch.get_num_threads()
        try:
            torch.set_num_threads(setting.threads or before)
            with torch.inference_mode():
                yield
        finally:
            torch.set_num_threads(before)

    def milliseconds(self, call: Callable[[], object], setting: TimingSetting) -> float:
        """On a GPU, what its own clock says between two events."""
        import torch

        device = torch.device(setting.device)
        if device.type != "cuda":
            return super().milliseconds(call, setting)
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        with torch.cuda.device(device):
            begin.record()
            call()
            end.record()
            end.synchronize()
        return begin.elapsed_time(end)


def placed(network: nn.Module, inputs: Tensor, setting: TimingSetting) -> tuple[nn.Module, Tensor]:
    """A network and its inputs on the device, in the dtype and the order in memory of the setting."""
    import torch

    from cnncompress.network.inputs import input_dtype
    from cnncompress.network.memory_format import MEMORY_FORMATS, memory_format_of

    ready: Any = network.to(setting.device)
    if setting.dtype:
        ready = ready.to(getattr(torch, setting.dtype))
    if setting.memory_format:
        ready = ready.to(memory_format=MEMORY_FORMATS[setting.memory_format])
    placed = inputs.to(setting.device, input_dtype(ready))
    if placed.dim() == 4:
        placed = placed.contiguous(memory_format=MEMORY_FORMATS[setting.memory_format or memory_format_of(ready)])
    return ready, placed


class _HookedLayers:
    """Times the calls of layers in a network: decomposed ones as a whole, and the plain ones outside of them."""

    def __init__(self, network: nn.Module, inputs: Tensor) -> None:
        self.network, self.inputs = network, inputs
        self.spent: dict[str, float] = {}
        self.passes: list[dict[str, float]] = []
        for name, module in _layers(network):
            self._watch(name, module, inputs.device)

    def run(self) -> object:
        from cnncompress.network.run import run

        self.spent = {}
        run(self.network, self.inputs)
        self.passes.append(self.spent)
        return None

    def milliseconds(self) -> dict[str, list[float]]:
        by_layer: dict[str, list[float]] = {}
        for spent in self.passes:
            for name, ms in spent.items():
                by_layer.setdefault(name, []).append(ms)
        return by_layer

    def _watch(self, name: str, module: nn.Module, device: torch.device) -> None:
        started = 0.0

        def before(*_: Any) -> None:
            nonlocal started
            _wait_for(device)
            started = time.perf_counter()

        def after(*_: Any) -> None:
            _wait_for(device)
            self.spent[name] = self.spent.get(name, 0.0) + (time.perf_counter() - started) * 1000

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)


def _layers(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    from cnncompress.chains.modules import FactoredLayer
    from cnncompress.network.kinds import is_layer

    inside = {m for f in network.modules() if isinstance(f, FactoredLayer) for m in f.modules() if m is not f}
    for name, module in network.named_modules():
        if (isinstance(module, FactoredLayer) or is_layer(module)) and module not in inside:
            yield name, module


def _wait_for(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
