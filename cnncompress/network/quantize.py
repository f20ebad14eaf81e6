"""ONNX programs in 8-bit integers, as ONNX Runtime and OpenVINO run them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from torch import Tensor

from cnncompress.network.onnx import foreign

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

PARAMETERS = (".weight", ".bias")


def quantized(program: bytes, batches: Iterable[Tensor], keep_float: Sequence[str] = (), weight_bits: int = 8) -> bytes:
    """A program with pairs of operators around every other that round to 8 bits (QDQ), static, MinMax.

    Weights are symmetric with a scale for each output channel, of `weight_bits`, 7 or 8. Activations are unsigned with
    one scale and zero point, from the smallest and the largest value in `batches`. Layers whose name matches a shell
    glob of `keep_float` compute in floating point. CompressError where ONNX Runtime cannot quantise the program.
    """
    import onnx

    with foreign("ONNX Runtime", "quantise"), TemporaryDirectory() as folder:
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

        model = onnx.load_from_string(program)
        excluded = [node.name for node in model.graph.node if _is_kept(node, keep_float)]
        single, file = Path(folder) / "single.onnx", Path(folder) / "int8.onnx"
        single.write_bytes(program)  # a model in memory is changed by the older versions of ONNX Runtime
        quantize_static(
            str(single),
            str(file),
            _reader(model.graph.input[0].name, batches),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=excluded,
            reduce_range=weight_bits == 7,
        )
        return file.read_bytes()


def layers_of(program: ModelProto) -> list[str]:
    """The names of the layers in a program, a chain's stages each with its number."""
    return list(dict.fromkeys(name for node in program.graph.node for name in _layers(node)))


def _layers(node: NodeProto) -> Iterator[str]:
    """The layer whose weight or bias a node takes in: an exporter names these as the network does."""
    for name in node.input:
        for ending in PARAMETERS:
            if name.endswith(ending):
                yield name.removesuffix(ending)


def _is_kept(node: NodeProto, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in _layers(node) for pattern in patterns)


def _reader(name: str, batches: Iterable[Tensor]) -> object:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(batches)

        def get_next(self) -> dict[str, object] | None:
            batch = next(self.batches, None)
            return None if batch is None else {name: batch.numpy()}

    return Reader()
