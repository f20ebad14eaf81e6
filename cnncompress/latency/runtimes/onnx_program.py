"""What runtimes that read ONNX have in common: the graph that `cnncompress export --format onnx` writes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cnncompress.latency.runtimes.base import Call, Runtime

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cnncompress.latency.setting import TimingSetting


class OnnxProgramRuntime(Runtime):
    """A runtime that reads a network as an ONNX program; in int8 one with scales from the inputs it is timed on."""

    def missing(self) -> str:
        """The package that is not installed."""
        from cnncompress.network.onnx import missing_package

        return missing_package()

    @abstractmethod
    def load(self, program: bytes, inputs: Tensor, setting: TimingSetting) -> Callable[[], object]:
        """As `prepare`, for the program of a network; whatever it raises becomes a CompressError."""

    def prepare(self, network: nn.Module, inputs: Tensor, setting: TimingSetting) -> Callable[[], object]:
        """The network as it is exported, with a free batch size."""
        from cnncompress.network.onnx import check_size, foreign, to_onnx, two_or_more

        check_size(network)
        network, inputs = network.float(), inputs.float()
        with foreign("ONNX", "export"):
            program = to_onnx(network, two_or_more(inputs)).model_proto.SerializeToString()
        return self._loaded(_rounded(program, inputs, setting), inputs, setting)

    def prepare_chain(self, chain: nn.Module, inputs: Tensor, setting: TimingSetting) -> Callable[[], object]:
        """By the tracer that takes milliseconds: the layers are plain, and their graph is the same."""
        return self._loaded(_traced(chain, inputs, setting), inputs, setting)

    def prepare_twins(self, chain: nn.Module, inputs: Tensor, setting: TimingSetting) -> tuple[Call, Call]:
        """The same program, loaded twice."""
        program = _traced(chain, inputs, setting)
        return self._loaded(program, inputs, setting), self._loaded(program, inputs, setting)

    @contextmanager
    def running(self, setting: TimingSetting) -> Iterator[None]:
        """Without gradients, which an export would record."""
        import torch

        with torch.no_grad():
            yield

    def _loaded(self, program: bytes, inputs: Tensor, setting: TimingSetting) -> Callable[[], object]:
        from cnncompress.network.onnx import foreign

        with foreign(self.name, "run"):
            call = self.load(program, inputs, setting)
            call()
        return call


def _traced(chain: nn.Module, inputs: Tensor, setting: TimingSetting) -> bytes:
    from cnncompress.network.onnx import foreign, plain_to_onnx, simplified

    with foreign("ONNX", "export"):
        program = plain_to_onnx(chain, inputs)
        if setting.dtype == "int8":
            program = simplified(program)
    return _rounded(program, inputs, setting)


def _rounded(program: bytes, inputs: Tensor, setting: TimingSetting) -> bytes:
    """The program in the integers of the setting, or as it is."""
    from cnncompress.network.quantize import quantized
    from cnncompress.processor import weight_bits

    return quantized(program, [inputs], weight_bits=weight_bits()) if setting.dtype == "int8" else program
