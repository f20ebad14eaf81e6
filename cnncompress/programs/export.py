"""Networks as files for other runtimes, each run and compared with the network before it is in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cnncompress.errors import CompressError, UsageError
from cnncompress.files.publish import check_file, replacing
from cnncompress.network import openvino
from cnncompress.network.copying import clone
from cnncompress.network.onnx import (
    BATCH_IS_FREE,
    check_size,
    foreign,
    missing_package,
    open_session,
    to_onnx,
    two_or_more,
)
from cnncompress.network.openvino import missing_openvino
from cnncompress.network.run import forward, inference, logits, same_outputs
from cnncompress.programs.measured import Int8Measured

if TYPE_CHECKING:
    from openvino import Model

Runner = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Output:
    """A file to write: the name of its format in messages, its path, and whether it may replace another.

    `second` is the ending of another file of the same name that belongs to it.
    """

    kind: str
    path: str | Path
    force: bool = False
    second: str = ""


@dataclass(frozen=True)
class ExportReport:
    """A file that was checked: the largest difference of its outputs from the network's, and what was allowed.

    `relative_difference` is `max_abs_difference` over the largest output; it is at most `tolerance`. `int8` is what
    8-bit integers did to the network, where it was written in them; the differences are then from the same network
    in memory.
    """

    path: Path
    max_abs_difference: float
    relative_difference: float
    tolerance: float
    bytes: int
    int8: Int8Measured | None = None


def export_onnx(
    model: nn.Module,
    example: Tensor,
    path: str | Path,
    tolerance: float | None = None,
    force: bool = False,
    opset: int | None = None,
) -> ExportReport:
    """Write a network as one ONNX file with a free batch size, checked in ONNX Runtime on the CPU.

    `example` [N, ...] is a batch of inputs; another of random numbers and another size is compared too. `tolerance`
    is relative to the largest output, by default 1e-4 (2e-2 in half precision). An existing file is replaced with
    `force` only. `opset` is the version of the operator set, by default the exporter's. CompressError where a package
    is missing, the exporter fails, or the outputs differ; then nothing is left behind.
    """
    _check_onnx(missing_package(), model, example)

    def write(net: nn.Module, inputs: Tensor, file: Path, *_: Path) -> Runner:
        program = to_onnx(net, inputs, opset)
        program.save(file, external_data=False)
        return onnx_runner(file)

    return export_checked(Output("ONNX", path, force), model, example, tolerance, write)


def export_openvino(
    model: nn.Module,
    example: Tensor,
    path: str | Path,
    tolerance: float | None = None,
    force: bool = False,
    opset: int | None = None,
) -> ExportReport:
    """Write a network as OpenVINO's pair of files, `path` and the weights beside it (.bin), checked in OpenVINO.

    `path` ends in .xml. The arguments and errors are those of `export_onnx`, through whose program it goes.
    """
    if Path(path).suffix != ".xml":
        raise UsageError(f"OpenVINO reads no {Path(path).name}: give a name that ends in .xml")
    _check_onnx(missing_openvino(), model, example)

    def write(net: nn.Module, inputs: Tensor, file: Path, weights: Path) -> Runner:
        openvino.write(openvino.read(to_onnx(net, inputs, opset).model_proto.SerializeToString()), file, weights)
        return openvino_runner(openvino.read_files(file, weights))

    return export_checked(Output("OpenVINO", path, force, ".bin"), model, example, tolerance, write)


def export_pt2(
    model: nn.Module, example: Tensor, path: str | Path, tolerance: float | None = None, force: bool = False
) -> ExportReport:
    """Write a network by `torch.export` with a free batch size, checked by loading it again; else as `export_onnx`."""

    def write(net: nn.Module, inputs: Tensor, file: Path, *_: Path) -> Runner:
        buffer = BytesIO()  # torch's own writer to a file aborts the process when the disk is full
        torch.export.save(torch.export.export(net, (inputs,), dynamic_shapes=BATCH_IS_FREE), buffer)
        file.write_bytes(buffer.getbuffer())
        loaded = torch.export.load(file).module()
        return lambda x: logits(loaded(x))

    return export_checked(Output("torch.export", path, force), model, example, tolerance, write)


EXPORTERS: dict[str, Callable[..., ExportReport]] = {
    "onnx": export_onnx,
    "pt2": export_pt2,
    "openvino": export_openvino,
}
ENDINGS = {"onnx": "onnx", "pt2": "pt2", "openvino": "xml"}  # of the files


def _check_onnx(missing: str, model: nn.Module, example: Tensor) -> None:
    """CompressError where a package is `missing`, and for what cannot become an ONNX program or be run as one."""
    if missing:
        raise CompressError(missing)
    if example.dtype not in (torch.float32, torch.float16):
        kind = str(example.dtype).removeprefix("torch.")
        raise CompressError(
            f"ONNX Runtime computes in float32 and float16 on a CPU, not in {kind}; export to pt2 instead"
        )
    check_size(model)


def onnx_runner(program: bytes | Path) -> Runner:
    """The forward pass of an ONNX program, or of its file, in ONNX Runtime."""
    session = open_session(program)
    return lambda x: torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def openvino_runner(model: Model) -> Runner:
    """The forward pass of a model in OpenVINO."""
    request = openvino.request(model)
    return lambda x: torch.from_numpy(request.infer([x.numpy()])[0].copy())


@contextmanager
def publishing(output: Output) -> Iterator[list[Path]]:
    """Temporary paths for the files of an output, which become its files together: the second one first."""
    main = check_file(output.path, output.force)
    targets = [main, *([check_file(main.with_suffix(output.second), output.force)] if output.second else [])]
    with ExitStack() as stack:
        yield [stack.enter_context(replacing(target, output.force)) for target in targets]


def export_checked(
    output: Output, model: nn.Module, example: Tensor, tolerance: float | None, write: Callable[..., Runner]
) -> ExportReport:
    """Let `write` make the files of a network and say how to run them; keep them where outputs are the network's.

    `write` gets the network, a batch of two or more images, and the path of each file. The other arguments and the
    errors are those of `export_onnx`.
    """
    kind = output.kind
    target = check_file(output.path, output.force)
    if tolerance is None:
        tolerance = 1e-4 if torch.finfo(example.dtype).bits >= 32 else 2e-2
    if any(t.device.type != "cpu" for t in (*model.parameters(), *model.buffers())):
        model = clone(model).cpu()
    example = example.detach().cpu()
    with inference(model), publishing(output) as files:
        traced = two_or_more(example)
        batches = [example, random_batch(example, len(traced) + 1)]
        expected = [forward(model, x) for x in batches]
        if not same_outputs(forward(model, batches[0]), expected[0]):
            raise CompressError(
                "two forward passes on the same input differ: the network is random or counts its passes (F.dropout "
                "without training=self.training does that), and no export of it can be checked"
            )
        with foreign(kind, "export"):
            run = write(model, traced, *files)
        with foreign(kind, "run the export of"):
            outputs = [run(x) for x in batches]
        absolute, relative = compare(expected, outputs)
        return checked(output, target, files, "network", (absolute, relative, tolerance))


def checked(
    output: Output, target: Path, files: Sequence[Path], whose: str, differences: tuple[float, float, float]
) -> ExportReport:
    """The report on `files` that are to be the output at `target`; CompressError where outputs differ too much.

    `differences` from the outputs of `whose` these are: the absolute one, the relative one, and what that may be.
    """
    absolute, relative, tolerance = differences
    if not relative <= tolerance:
        raise CompressError(
            f"the {output.kind} file was not written to {output.path}: its outputs differ from the {whose}'s by "
            f"{relative:.1e} of their scale, more than {tolerance:.1e}"
        )
    return ExportReport(target, absolute, relative, tolerance, sum(file.stat().st_size for file in files))


def random_batch(example: Tensor, size: int) -> Tensor:
    """Random numbers of the shape of an example, but for `size` images."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, *example.shape[1:], generator=generator).to(example.dtype)


def compare(expected: list[Tensor], outputs: list[Tensor]) -> tuple[float, float]:
    """The largest absolute difference, and the largest relative to its batch's largest output; NaN stays NaN."""
    absolutes, relatives = [], []
    for one, other in zip(expected, outputs, strict=True):
        if one.shape != other.shape:
            raise CompressError(f"the export gives outputs of {tuple(other.shape)}, the network {tuple(one.shape)}")
        difference = (one.double() - other.double()).abs().max()
        scale = one.double().abs().max().clamp_min(torch.finfo(torch.float32).tiny)
        absolutes.append(difference)
        relatives.append(difference / scale)
    return float(torch.stack(absolutes).max()), float(torch.stack(relatives).max())
