"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from cnncompress.latency.runtimes.base import register
from cnncompress.latency.runtimes.onnx_program import OnnxProgramRuntime

if TYPE_CHECKING:
    from torch import Tensor

    from cnncompress.latency.setting import TimingSetting

OPTIONS = {
    # Threads wait in a loop within a run and sleep once it is over, so that no network runs beside another's pool.
    "session.force_spinning_stop": "1",
}


@register
class OnnxRuntime(OnnxProgramRuntime):
    """ONNX Runtime's CPU provider, all of its optimisations on."""

    name = "onnxruntime"
    package = "onnxruntime"
    precisions = ("fp32", "int8")

    def version(self) -> str:
        """That of onnxruntime."""
        import onnxruntime

        return str(onnxruntime.__version__)

    def load(self, program: bytes, inputs: Tensor, setting: TimingSetting) -> Callable[[], object]:
        """A session of its own."""
        from cnncompress.network.onnx import open_session

        session = open_session(program, setting.threads or 0, OPTIONS)
        return partial(session.run, None, {session.get_inputs()[0].name: inputs.numpy()})
