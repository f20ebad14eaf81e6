"""ONNX Runtime on the CPU, with the graph that `cnncompress export --format onnx` writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from cnncompress.latency.runtimes.base import Runtime, register

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cnncompress.latency.setting import TimingSetting

OPTIONS = {
    # Threads wait in a loop within a run and sleep once it is over, so that no network runs beside another's pool.
    "session.force_spinning_stop": "1",
}


@register
class OnnxRuntime(Runtime):
    """ONNX Runtime's CPU provider, all of its optimisations on."""

    name = "onnxruntime"

    def missing(self) -> str:
        """The package that is not installed."""
        from cnncompress.network.onnx import missing_package

        return missing_package()

    def version(self) -> str:
        """That of onnxruntime."""
        import onnxruntime

        return str(onnxruntime.__version__)

    def prepare(self, network: nn.Module, inputs: Tensor, setting: TimingSetting) -> Callable[[], object]:
        """The network as it is exported, with a free batch size."""
        from cnncompress.network.onnx import check_size, foreign, to_onnx, two_or_more

        check_size(network)
        network, inputs = network.float(), inputs.float()
        with foreign("ONNX", "export"):
            program = to_onnx(network, two_or_more(inputs)).model_proto.SerializeToString()
        return _session(program, inputs, setting)

    def prepare_chain(self, chain: nn.Module, inputs: Tensor, setting: TimingSetting) -> Callable[[], object]:
        """By the tracer that takes milliseconds: the layers are plain, and their graph is the same."""
        from cnncompress.network.onnx import foreign, plain_to_onnx

        with foreign("ONNX", "export"):
            program = plain_to_onnx(chain, inputs)
        return _session(program, inputs, setting)

    @contextmanager
    def running(self, setting: TimingSetting) -> Iterator[None]:
        """Without gradients, which an export would record."""
        import torch

        with torch.no_grad():
            yield


def _session(program: bytes, inputs: Tensor, setting: TimingSetting) -> Callable[[], object]:
    from cnncompress.network.onnx import foreign, open_session

    with foreign("ONNX Runtime", "run"):
        session = open_session(program, setting.threads or 0, OPTIONS)
        call = partial(session.run, None, {session.get_inputs()[0].name: inputs.numpy()})
        call()
    return call
