"""A network in 8-bit integers: calibrated, measured beside itself in single precision, written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnncompress.data import Data, make_loader, split
from cnncompress.data.sample import evenly
from cnncompress.errors import CompressError, DataError, UsageError
from cnncompress.latency.network import program_latencies
from cnncompress.latency.setting import TimingSetting
from cnncompress.network.evaluate import evaluate, paired_error
from cnncompress.network.inputs import read_batch
from cnncompress.network.parts import parts
from cnncompress.pipeline.asked import ImagesAsked, NetworkAsked
from cnncompress.pipeline.calibration import EVALUATION_SHARE
from cnncompress.pipeline.export import target_of
from cnncompress.pipeline.images import open_data
from cnncompress.pipeline.opened import Opened, open_run
from cnncompress.processor import weight_bits
from cnncompress.programs.export import ExportReport, Runner
from cnncompress.programs.int8 import TARGETS, Programs, Target, quantise, write_int8
from cnncompress.programs.measured import Int8Measured, Measured
from cnncompress.terminal.console import Steps

WEIGHT_BITS = (7, 8)


@dataclass(frozen=True)
class Int8Asked:
    """How the network of a run is quantised and where it is written: None for beside the run.

    `calibration_images` is the number of images that scales come from. Layers whose name matches a pattern of
    `keep_float` compute in single precision. `weight_bits` is that of `Int8Settings`.
    """

    format: str
    output: Path | None = None
    force: bool = False
    calibration_images: int = 256
    keep_float: Sequence[str] = ()
    opset: int | None = None
    weight_bits: int | None = None


@dataclass(frozen=True)
class Int8Settings:
    """How a network becomes one in 8-bit integers.

    The scales of activations come from `images`, a tensor [n, c, h, w] or batches as `inputs.read_batch` takes them. On
    `val`, batches of other images, both precisions are evaluated: their accuracies where there are labels, else how
    often they give the same answer. Layers whose name matches a shell glob of `keep_float` compute in single precision.
    Weights have 8 bits or 7; None is 8, but 7 where sums of products overflow on this processor.
    """

    images: Tensor | Iterable[Any]
    val: Tensor | Iterable[Any] | None = None
    keep_float: Sequence[str] = ()
    weight_bits: int | None = None


def int8_of_run(
    run: Path, network: NetworkAsked, read: ImagesAsked, asked: Int8Asked, tell: Callable[[Int8Measured], None]
) -> ExportReport:
    """Write the network of a run in 8-bit integers; `tell` hears what that does to it before anything is written.

    UsageError for a format or images that do not serve; CompressError without a package, and where the network cannot
    be quantised. Images that the run was calibrated on may give scales; those that are evaluated gave none.
    """
    target = _target_of(asked.format, "--int8 is for --format")
    if read.spec is None:
        raise UsageError("--int8 needs images that scales come from; give --data FOLDER, cifar10:ROOT or digits")
    path = target_of(run, asked.format, asked.output, asked.force)
    steps = Steps(["load", "quantise", "measure", "export"])
    with steps("load", f"load {run}"):
        opened = open_run(run, network)
        data = _two_parts(read.spec, opened)
    train = data.train or data.val
    indices = evenly(len(train), asked.calibration_images)
    with steps("quantise", f"quantise on {len(indices)} images"):
        loader = make_loader(train, read.reading, workers=read.workers, indices=indices)
        bits = _bits_of(asked.weight_bits)
        programs = quantise(opened.model, opened.example(2), _images_of(loader), asked.keep_float, asked.opset, bits)
    with steps("measure", f"evaluate and time both in {target.runtime}"):
        measured = replace(_timed(programs, target, opened.example(), len(indices)), weight_bits=bits)
        measured = _answered(measured, programs, target, make_loader(data.val, read.reading, workers=read.workers))
        tell(measured)
    with steps("export", f"write {path}, run it and compare"):
        written = write_int8(programs.int8, opened.example(2), asked.format, path, asked.force)
    return replace(written, int8=measured)


def int8_of_network(
    network: nn.Module, example: Tensor, path: str | Path, how: Int8Settings, asked: Int8Asked, tolerance: float | None
) -> ExportReport:
    """Write a network in 8-bit integers, with what that does to it; of `asked`, format, opset and force count.

    `example` is a batch of inputs. DataError without images, else as `int8_of_run`.
    """
    target = _target_of(asked.format, "int8 is for")
    scales, val = _Counted(_batches(how.images)), None if how.val is None else _batches(how.val)
    if val is not None and iter(val) is val:
        raise UsageError("val is gone through more than once: give a loader or a list of batches, not an iterator")
    bits = _bits_of(how.weight_bits)
    programs = quantise(network, example, scales, how.keep_float, asked.opset, bits)
    measured = replace(_timed(programs, target, example[:1], scales.count), weight_bits=bits)
    if val is not None:
        measured = _answered(measured, programs, target, val)
    return replace(write_int8(programs.int8, example, asked.format, path, asked.force, tolerance), int8=measured)


def _target_of(format: str, where: str) -> Target:
    """What is written in a format; UsageError where that is not for int8, CompressError without its package."""
    if format not in TARGETS:
        raise UsageError(f"{where} {' and '.join(TARGETS)}, not {format}")
    if missing := TARGETS[format].missing():
        raise CompressError(missing)
    return TARGETS[format]


def _bits_of(asked: int | None) -> int:
    """The bits of weights; UsageError for a number that they cannot have."""
    if asked not in (None, *WEIGHT_BITS):
        raise UsageError(f"weights have 7 or 8 bits, not {asked}")
    return asked or weight_bits()


def _two_parts(spec: str, opened: Opened) -> Data:
    """The data set with images for scales (`train`) and others to evaluate on."""
    data = open_data(spec, opened)
    assert data is not None
    return split(data, EVALUATION_SHARE, 0)


def _batches(images: Tensor | Iterable[Any]) -> Iterable[Any]:
    return list(parts(read_batch(images, labels=False)[0])) if isinstance(images, Tensor) else images


def _images_of(loader: Iterable[Any]) -> Iterator[Tensor]:
    for batch in loader:
        yield read_batch(batch, labels=False)[0]


class _Counted:
    """The images of batches, counted when they are gone through."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.images, self.count = _images_of(loader), 0
        first = next(self.images, None)
        if first is None:
            raise DataError("no images to take scales from; check the data set")
        self.images = chain([first], self.images)

    def __iter__(self) -> Iterator[Tensor]:
        for images in self.images:
            self.count += len(images)
            yield images


def _timed(programs: Programs, target: Target, example: Tensor, calibrated: int) -> Int8Measured:
    """Both programs timed on one image, not evaluated yet."""
    by_precision = {"fp32": programs.single, "int8": programs.int8}
    times = program_latencies(by_precision, example.float(), TimingSetting(target.runtime))
    single, int8 = (Measured(len(program), times[key]) for key, program in by_precision.items())
    return Int8Measured(single, int8, None, None, calibrated, 0)


def _answered(measured: Int8Measured, programs: Programs, target: Target, loader: Iterable[Any]) -> Int8Measured:
    """The measurement with what both programs answer to the images of a loader."""
    single, int8 = (_Run(target.run(program)) for program in (programs.single, programs.int8))
    first = next(iter(loader), None)
    if first is None:
        raise DataError("no images to evaluate on; check the data set")
    labels = read_batch(first)[1]
    if labels is None or bool((labels < 0).any()):  # images without a class
        same = torch.cat([single(x).argmax(1) == int8(x).argmax(1) for x in _images_of(loader)])
        return replace(measured, same=100 * float(same.double().mean()), evaluated=len(same))
    one, other = (evaluate(network, loader) for network in (single, int8))
    return replace(
        measured,
        single=replace(measured.single, evaluation=one),
        int8=replace(measured.int8, evaluation=other),
        top1_error=paired_error(one, other),
        evaluated=one.images,
    )


class _Run(nn.Module):
    """A program as a network, for evaluation."""

    def __init__(self, run: Runner) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)
