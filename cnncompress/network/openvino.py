"""ONNX programs in OpenVINO, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from cnncompress.network.onnx import missing_package

if TYPE_CHECKING:
    from openvino import Core

HINTS = {"bfloat16": "bf16"}  # by dtype; f32 for the others, int8 included: it holds for what is not quantised


def missing_openvino() -> str:
    """What to install for OpenVINO, which reads ONNX programs here, in one line; "" where all is there."""
    if find_spec("openvino") is None:
        return "openvino is not installed: pip install 'cnncompress[openvino]'"
    return missing_package()


@cache
def core() -> Core:
    """OpenVINO's one entry, which takes a while to make."""
    from openvino import Core

    return Core()


def has_bf16() -> bool:
    """True where the processor computes in bfloat16."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def compiled(program: bytes | Path, inputs: Tensor, dtype: str = "", threads: int = 0) -> Callable[[], Any]:
    """A function that runs a program, or its file, on one batch; the first of what it gives are the logits.

    `threads` 0 leaves their number to OpenVINO. They stay on no processor of their own, as those of other runtimes.
    """
    model = core().read_model(program)
    model.reshape(list(inputs.shape))
    options: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": HINTS.get(dtype, "f32"),
        "ENABLE_CPU_PINNING": False,
    }
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    request = core().compile_model(model, "CPU", options).create_infer_request()
    batch = inputs.numpy()
    return lambda: request.infer([batch], share_inputs=True, share_outputs=True)
