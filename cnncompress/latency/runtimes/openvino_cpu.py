"""OpenVINO on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from cnncompress.latency.runtimes.base import NO_BF16, register
from cnncompress.latency.runtimes.onnx_program import OnnxProgramRuntime

if TYPE_CHECKING:
    from torch import Tensor

    from cnncompress.latency.setting import TimingSetting


@register
class OpenVino(OnnxProgramRuntime):
    """OpenVINO's CPU plugin, for the least latency of one batch at a time."""

    name = "openvino"
    package = "openvino"
    precisions = ("fp32", "bf16", "int8")

    def missing(self) -> str:
        """The package that is not installed."""
        from cnncompress.network.openvino import missing_openvino

        return missing_openvino()

    def lacks(self, precision: str) -> str:
        """OpenVINO says what the processor has; it would compute in single precision instead."""
        from cnncompress.network.openvino import has_bf16

        return NO_BF16 if precision == "bf16" and not has_bf16() else ""

    def version(self) -> str:
        """That of openvino."""
        import openvino

        return str(openvino.__version__)

    def load(self, program: bytes, inputs: Tensor, setting: TimingSetting) -> Callable[[], object]:
        """A request of its own, for batches of this size."""
        from cnncompress.network.openvino import read, request

        model = read(program)
        model.reshape(list(inputs.shape))
        ready = request(model, setting.dtype, setting.threads or 0)
        return partial(ready.infer, [inputs.numpy()], share_inputs=True, share_outputs=True)
