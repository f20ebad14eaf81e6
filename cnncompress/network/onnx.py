"""A network as an ONNX program in memory, and what that takes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from io import BytesIO, StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cnncompress.errors import CompressError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, SessionOptions
    from torch.onnx import ONNXProgram

LIMIT_BYTES = 2**31  # of one protobuf message
BATCH_IS_FREE = ({0: torch.export.Dim.DYNAMIC},)
ERRORS_ONLY = 3  # of ONNX Runtime's levels of severity
PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def missing_package() -> str:
    """The message that names the package to install for ONNX; "" where all are installed."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    return f"{missing[0]} is not installed: pip install 'cnncompress[onnx]'" if missing else ""


def check_size(network: nn.Module) -> None:
    """CompressError for a network whose weights do not fit one file."""
    size = sum(t.numel() * t.element_size() for t in (*network.parameters(), *network.buffers()))
    if size >= LIMIT_BYTES:
        raise CompressError(f"{size / 1e9:.1f} GB of weights do not fit one ONNX file (2 GB); export to pt2 instead")


def to_onnx(network: nn.Module, inputs: Tensor, opset: int | None = None) -> ONNXProgram:
    """The program of a network with a free batch size, traced with the two or more images of `inputs`."""
    program = torch.onnx.export(
        network,
        (inputs,),
        dynamo=True,
        opset_version=opset,
        dynamic_shapes=BATCH_IS_FREE,
        input_names=["input"],
        output_names=["logits"],
        verbose=False,
    )
    if program is None:
        raise CompressError("the ONNX exporter returned nothing")
    return program


def plain_to_onnx(module: nn.Module, inputs: Tensor) -> bytes:
    """The program of a few plain layers for inputs of one shape, in milliseconds instead of seconds."""
    buffer = BytesIO()
    torch.onnx.export(module, (inputs,), buffer, dynamo=False)  # type: ignore[arg-type]
    return buffer.getvalue()


def simplified(program: bytes) -> bytes:
    """A program with constants computed and paddings taken into convolutions, in the operators of the standard.

    Quantised as it is traced, a padding that is an operator of its own would be one in floating point. Names of
    weights may be lost.
    """
    from onnxruntime import GraphOptimizationLevel

    with TemporaryDirectory() as folder:
        file, options = Path(folder, "simple.onnx"), _options(threads=1)
        options.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(file)
        _session(program, options)
        return file.read_bytes()


def open_session(program: bytes | Path, threads: int = 0, entries: Mapping[str, str] | None = None) -> InferenceSession:
    """ONNX Runtime's session of a program or of its file, on the CPU, silent but for errors.

    `threads` 0 leaves their number to the runtime; `entries` are its options by name.
    """
    options = _options(threads)
    for key, value in (entries or {}).items():
        options.add_session_config_entry(key, value)
    return _session(program, options)


def _options(threads: int) -> SessionOptions:
    from onnxruntime import SessionOptions

    options = SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return options


def _session(program: bytes | Path, options: SessionOptions) -> InferenceSession:
    from onnxruntime import InferenceSession

    return InferenceSession(program, options, providers=["CPUExecutionProvider"])


def two_or_more(inputs: Tensor) -> Tensor:
    """The batch, or an image twice: an exporter takes a batch size of 1 for a constant."""
    return inputs if len(inputs) > 1 else torch.cat([inputs, inputs])


@contextmanager
def foreign(kind: str, doing: str) -> Iterator[None]:
    """Run an exporter or a runtime in silence; what it raises becomes one line."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    except (CompressError, OSError):
        raise
    except Exception as error:  # any of the many kinds that tracers, converters and runtimes raise
        cause = error.__cause__ or error
        reason = next((line.strip() for line in str(cause).splitlines() if line.strip()), "")
        raise CompressError(f"{kind} cannot {doing} this network: {type(cause).__name__}: {reason}") from error
    finally:
        logging.disable(level)
