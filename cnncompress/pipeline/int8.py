"""The network of a run in 8-bit integers: calibrated, measured beside itself in single precision, written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cnncompress.data import Data, Loader, make_loader, split
from cnncompress.errors import CompressError, UsageError
from cnncompress.latency.network import program_latencies
from cnncompress.latency.setting import TimingSetting
from cnncompress.network.evaluate import evaluate, paired_error
from cnncompress.network.inputs import read_batch
from cnncompress.pipeline.asked import ImagesAsked, NetworkAsked
from cnncompress.pipeline.calibration import EVALUATION_SHARE, evenly
from cnncompress.pipeline.export import target_of
from cnncompress.pipeline.images import open_data
from cnncompress.pipeline.opened import Opened, open_run
from cnncompress.programs.export import ExportReport, Runner
from cnncompress.programs.int8 import TARGETS, Programs, Target, quantise, write_int8
from cnncompress.reporting.int8 import Int8Measured, Measured
from cnncompress.terminal.console import Steps


@dataclass(frozen=True)
class Int8Asked:
    """How a network is quantised and where it is written: None for beside the run.

    `calibration_images` is the number of images that scales come from. Layers whose name matches a pattern of
    `keep_float` compute in single precision.
    """

    format: str
    output: Path | None = None
    force: bool = False
    calibration_images: int = 256
    keep_float: Sequence[str] = ()
    opset: int | None = None


def int8_of_run(
    run: Path, network: NetworkAsked, read: ImagesAsked, asked: Int8Asked, tell: Callable[[Int8Measured], None]
) -> ExportReport:
    """Write the network of a run in 8-bit integers; `tell` hears what that does to it before anything is written.

    UsageError for a format or images that do not serve; CompressError without a package, and where the network cannot
    be quantised. Images that the run was calibrated on may give scales; those that are evaluated gave none.
    """
    if asked.format not in TARGETS:
        raise UsageError(f"--int8 is for --format {' and '.join(TARGETS)}, not {asked.format}")
    target = TARGETS[asked.format]
    if missing := target.missing():
        raise CompressError(missing)
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
        loader = make_loader(train, read.batch_size, workers=read.workers, indices=indices)
        programs = quantise(opened.model, opened.example(2), _images_of(loader), asked.keep_float, asked.opset)
    with steps("measure", f"evaluate and time both in {target.runtime}"):
        tell(_measure(programs, target, data, read, (opened.example(), len(indices))))
    with steps("export", f"write {path}, run it and compare"):
        return write_int8(programs.int8, opened.example(2), asked.format, path, asked.force)


def _two_parts(spec: str, opened: Opened) -> Data:
    """The data set with images for scales (`train`) and others to evaluate on."""
    data = open_data(spec, opened)
    assert data is not None
    return split(data, EVALUATION_SHARE, 0)


def _images_of(loader: Loader) -> Iterator[Tensor]:
    for batch in loader:
        yield read_batch(batch, labels=False)[0]


def _measure(
    programs: Programs, target: Target, data: Data, read: ImagesAsked, timed: tuple[Tensor, int]
) -> Int8Measured:
    example, calibrated = timed
    by_precision = {"fp32": programs.single, "int8": programs.int8}
    times = program_latencies(by_precision, example.float(), TimingSetting(target.runtime))
    networks = {precision: _Run(target.run(program)) for precision, program in by_precision.items()}
    loader = make_loader(data.val, read.batch_size, workers=read.workers)
    scores = {precision: evaluate(one, loader) if data.labelled else None for precision, one in networks.items()}
    same = None if data.labelled else _agreement(networks["fp32"], networks["int8"], loader)
    single, int8 = (Measured(len(program), times[key], scores[key]) for key, program in by_precision.items())
    error = paired_error(scores["fp32"], scores["int8"])
    return Int8Measured(single, int8, same, error, calibrated, len(data.val))


def _agreement(one: nn.Module, other: nn.Module, loader: Loader) -> float:
    """The percentage of images that both give the same answer to."""
    same = [one(images).argmax(1) == other(images).argmax(1) for images in _images_of(loader)]
    return 100 * float(torch.cat(same).double().mean())


class _Run(nn.Module):
    """A program as a network, for evaluation."""

    def __init__(self, run: Runner) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)
