"""Networks in 8-bit integers, as programs in memory and as files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cnncompress.errors import CompressError, UsageError
from cnncompress.network import openvino
from cnncompress.network.balancing import balance_network
from cnncompress.network.copying import clone
from cnncompress.network.onnx import check_size, foreign, missing_package, to_onnx, two_or_more
from cnncompress.network.openvino import missing_openvino
from cnncompress.network.quantize import layers_of, quantized
from cnncompress.network.run import inference
from cnncompress.programs.export import (
    ExportReport,
    Output,
    Runner,
    checked,
    compare,
    onnx_runner,
    openvino_runner,
    publishing,
    random_batch,
)
from cnncompress.terminal.words import listed

if TYPE_CHECKING:
    from openvino import Model

TOLERANCE = 2e-2  # of a file's outputs: another order of additions moves a value by one of 255 steps
NAMES_SHOWN = 8  # layers in a message
BALANCED_IMAGES = 256  # that chains are balanced on


@dataclass(frozen=True)
class Target:
    """A runtime that quantised programs are written for: its name among the runtimes, in messages, and its files.

    `run` makes a program a forward pass, `write` makes it files and reads them again.
    """

    runtime: str
    kind: str
    second: str
    missing: Callable[[], str]
    run: Callable[[bytes], Runner]
    write: Callable[..., Runner]


def _write_onnx(program: bytes, file: Path) -> Runner:
    file.write_bytes(program)
    return onnx_runner(file)


def _run_openvino(program: bytes) -> Runner:
    return _fixed_runner(openvino.read(program))


def _write_openvino(program: bytes, file: Path, weights: Path) -> Runner:
    openvino.write(openvino.read(program), file, weights)
    return _fixed_runner(openvino.read_files(file, weights))


def _fixed_runner(model: Model) -> Runner:
    """The forward pass of a model in OpenVINO, compiled for each shape of its inputs, as it is timed.

    With a free batch size the answers of integers are others where the processor has no VNNI (OpenVINO 2026.4).
    """
    runners: dict[torch.Size, Runner] = {}

    def run(x: Tensor) -> Tensor:
        if x.shape not in runners:
            fixed = model.clone()
            fixed.reshape(list(x.shape))
            runners[x.shape] = openvino_runner(fixed)
        return runners[x.shape](x)

    return run


TARGETS = {
    "onnx": Target("onnxruntime", "ONNX", "", missing_package, onnx_runner, _write_onnx),
    "openvino": Target("openvino", "OpenVINO", ".bin", missing_openvino, _run_openvino, _write_openvino),
}


@dataclass(frozen=True)
class Programs:
    """A network as an ONNX program in single precision, and as one in 8-bit integers."""

    single: bytes
    int8: bytes


def quantise(
    model: nn.Module,
    example: Tensor,
    batches: Iterable[Tensor],
    keep_float: Sequence[str] = (),
    opset: int | None = None,
    weight_bits: int = 8,
) -> Programs:
    """The programs of a network; `batches` [n, c, h, w] are what the scales of its activations come from.

    Chains are balanced on the first of them, which changes nothing in single precision but rounding. `example` is a
    batch of inputs, `weight_bits` is that of `quantized`. UsageError for a pattern of `keep_float` that no layer has;
    CompressError where a package is missing or the network cannot be exported or quantised.
    """
    if missing := missing_package():
        raise CompressError(missing)
    check_size(model)
    network, seen = clone(model).cpu().float(), (batch.float() for batch in batches)
    first = _first(seen, BALANCED_IMAGES)
    balance_network(network, first)
    with inference(network):
        with foreign("ONNX", "export"):
            single = to_onnx(network, two_or_more(example.float()), opset).model_proto.SerializeToString()
        check_patterns(single, keep_float)
        return Programs(single, quantized(single, chain(first, seen), keep_float, weight_bits))


def _first(batches: Iterator[Tensor], images: int) -> list[Tensor]:
    """The first batches, until there are so many images."""
    taken: list[Tensor] = []
    while sum(map(len, taken)) < images and (batch := next(batches, None)) is not None:
        taken.append(batch)
    return taken


def check_patterns(program: bytes, patterns: Sequence[str]) -> None:
    """UsageError for a pattern that no layer's name in a program matches."""
    import onnx

    names = layers_of(onnx.load_from_string(program))
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(f"--keep-float '{pattern}' matches no layer; they are {listed(names, NAMES_SHOWN)}")


def write_int8(
    program: bytes,
    example: Tensor,
    format: str,
    path: str | Path,
    force: bool = False,
    tolerance: float | None = None,
) -> ExportReport:
    """Write a quantised program in a format of `TARGETS`, checked in its runtime against what was in memory.

    `tolerance` is 2e-2 by default. It and errors are else those of `export_onnx`; nothing is left behind after one.
    """
    target = TARGETS[format]
    example = example.float()
    batches = [example, random_batch(example, len(example) + 1)]
    output = Output(target.kind, path, force, target.second)
    with publishing(output) as files:
        with foreign(target.kind, "run the export of"):
            before, after = target.run(program), target.write(program, *files)
            absolute, relative = compare([before(x) for x in batches], [after(x) for x in batches])
        allowed = TOLERANCE if tolerance is None else tolerance
        return checked(output, Path(path), files, "quantised network", (absolute, relative, allowed))
