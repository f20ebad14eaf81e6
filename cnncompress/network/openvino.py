"""ONNX programs and OpenVINO's own files in OpenVINO, on the CPU."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnncompress.errors import CompressError
from cnncompress.network.onnx import missing_package

if TYPE_CHECKING:
    from openvino import Core, InferRequest, Model

HINTS = {"bfloat16": "bf16"}  # by dtype; f32 for the others, int8 included: it holds for what is not quantised
PLACES = ("Exception from", "Check ", "While validating", "--")  # how lines begin that tell where alone


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


def read(program: bytes) -> Model:
    """The model of an ONNX program; CompressError where OpenVINO does not know what is in it."""
    try:
        return core().read_model(program)
    except RuntimeError as error:
        raise CompressError(f"OpenVINO cannot read this network: {_reason(str(error))}") from error


def read_files(xml: Path, weights: Path) -> Model:
    """The model of a pair of files that `write` made."""
    return core().read_model(xml, weights)


def _reason(message: str) -> str:
    """The first line of a message that tells more than where in OpenVINO's sources it comes from."""
    lines = [line.strip() for line in message.splitlines()]
    telling = [line for line in lines if line and not line.startswith(PLACES)]
    return next((line for line in telling if "nsupported" in line), next(iter(telling), "no reason given"))


def write(model: Model, xml: Path, weights: Path) -> None:
    """Write a model as OpenVINO's two files: the graph, and its weights in their own precision."""
    import openvino

    openvino.serialize(model, str(xml), str(weights))


def request(model: Model, dtype: str = "", threads: int = 0) -> InferRequest:
    """The model ready to run, tuned for the least latency; computes in `dtype`, single precision for most.

    `threads` 0 leaves their number to OpenVINO. They are bound to no processor, as those of other runtimes.
    """
    options: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": HINTS.get(dtype, "f32"),
        "ENABLE_CPU_PINNING": False,
    }
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    return core().compile_model(model, "CPU", options).create_infer_request()
