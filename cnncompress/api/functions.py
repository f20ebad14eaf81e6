"""The whole job as functions for Python: of networks and images in memory, and of runs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from cnncompress.chains.plan import Budget
from cnncompress.config import DEFAULT_BUDGET
from cnncompress.errors import UsageError, nearest
from cnncompress.files.place import resolve
from cnncompress.finetuning import FinetuneResult, FinetuneSettings, Lessons, Origin
from cnncompress.finetuning import finetune as train_in_place
from cnncompress.latency.setting import TimingSetting
from cnncompress.network.compressed import Compressed, network_of, with_provenance
from cnncompress.network.inputs import input_dtype, read_batch
from cnncompress.pipeline.asked import ImagesAsked, LayersAsked
from cnncompress.pipeline.int8 import Int8Asked, Int8Settings, int8_of_network
from cnncompress.pipeline.measure import report_on
from cnncompress.pipeline.memory import compress_network
from cnncompress.pipeline.opened import Opened
from cnncompress.programs.export import ENDINGS, EXPORTERS, ExportReport
from cnncompress.reporting import Report
from cnncompress.runs import load
from cnncompress.runs.lock import writing


def compress(
    model: nn.Module,
    images: Tensor,
    budget: Budget = DEFAULT_BUDGET,
    *,
    method: str = "auto",
    layers: Sequence[str] = (),
    skip: Sequence[str] = (),
    seed: int = 0,
    allow_slower: bool = False,
) -> Compressed:
    """A new network within `budget`: planned under the metric kronecker and corrected in network order.

    Where no gradient reaches its layers, the metric is data-covariance.

    `images` [n, 3, h, w] are some fifty or more inputs as the network takes them, on the CPU as the network is; no
    labels are needed. `method`, `layers` and `skip` are those of `plan`; `seed` is that of all random numbers. What
    comes back is called as the network is, and goes to `save` and `export` as it is. A budget of latency needs a table
    of times: give it to `plan`. With `allow_slower` the network may take longer than the original in eager PyTorch,
    which is measured otherwise.

    Raises UsageError for a budget that no plan meets, or none in the original's time, and for arguments of other types,
    CompressError for a network that cannot be run.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"model is a {type(model).__name__}, not a network: load_model('resnet50').model is one")
    if not isinstance(budget, Budget):
        raise UsageError(f"budget is a {type(budget).__name__}: give Budget(macs=0.5), the share that is to be left")
    images, _ = read_batch(images, input_dtype(model), labels=False)
    if not len(images):
        raise UsageError("there are no images to calibrate on: give some fifty or more")
    asked, original = LayersAsked(method, layers=layers, skip=skip), with_provenance(model)
    return compress_network(original, images, budget, asked, seed, allow_slower)


def finetune(
    model: nn.Module | Compressed,
    train: Dataset[Any],
    val: Dataset[Any],
    settings: FinetuneSettings | None = None,
    checkpoints: str | Path | None = None,
    *,
    device: str = "auto",
    resume: bool = False,
    teacher: nn.Module | Compressed | None = None,
    original: nn.Module | Compressed | None = None,
) -> FinetuneResult:
    """Train `model` in place; afterwards it holds the weights of the best epoch by top-1 on `val`.

    The weights before training count too, so it is never worse than before. Items of both sets are (image [3, H, W],
    class index). `settings` default to one epoch of SGD with a cosine; `device` "auto" is a GPU where there is one.
    `checkpoints` is a folder that training can
    `resume` from, and that one process at a time trains in; without one nothing is left on the disk. `teacher` is the
    network whose answers `model` learns from, its original, for settings with `distill="logits"`, `"attention"` or
    `"logits+attention"`. Settings that are `unlabelled` read no labels: items may be images alone.
    `original` is the network that `model` was made of: the schedule `cascade` starts from it, `until_drop` is measured
    from it, and it is the teacher where no other is given.

    Raises UsageError for settings that do not fit, DataError for labels, RunError for files, CompressError where the
    loss is no longer finite.
    """
    small, settings = with_provenance(model), settings or FinetuneSettings()
    origin = None if original is None else Origin(network_of(original), small.plan)
    lessons = Lessons(train, val, None if teacher is None else network_of(teacher), origin=origin)
    if checkpoints is None and resume:
        raise UsageError("resume needs the folder of the checkpoints: finetune(..., checkpoints=FOLDER, resume=True)")
    with ExitStack() as held:
        if checkpoints is None:
            place = Path(held.enter_context(tempfile.TemporaryDirectory()), "checkpoints")
        else:
            held.enter_context(writing(resolve(checkpoints)))
            place = Path(checkpoints)
        result = train_in_place(small.network, lessons, settings, place, device=device, resume=resume)
    small.provenance.errors.update(result.errors)
    return result


def report(
    *runs: str | Path, data: str | None = None, latency: bool = False, device: str = "auto", trust_code: bool = False
) -> Report:
    """Cost and accuracy of one or more runs beside their originals; `render` makes a table, CSV or JSON of it.

    `data` (as `--data`) has the accuracies measured again, `latency` the networks timed, both on `device`. `trust_code`
    is that of `load`. RunError for a run that cannot be read, UsageError where there is none.
    """
    if not runs:
        raise UsageError("nothing to report on; give at least one run: report('runs/vgg16')")
    if other := next((run for run in runs if not isinstance(run, str | Path)), None):
        raise UsageError(
            f"a report is on runs, which `save` writes, not on a {type(other).__name__}: give their folders"
        )
    timings = (TimingSetting(device=device),) if latency else ()
    return report_on([Path(run) for run in runs], ImagesAsked(data, device=device), timings, trust_code)


def export(
    model: nn.Module | Compressed | str | Path,
    path: str | Path,
    example: Tensor | None = None,
    *,
    format: str | None = None,
    tolerance: float | None = None,
    opset: int | None = None,
    int8: Int8Settings | None = None,
    force: bool = False,
    trust_code: bool = False,
) -> ExportReport:
    """Write a network, or the network of a run, as one file; it is run and compared before it is in its place.

    `format` is `onnx`, `openvino` or `pt2`, by default what the file is called. `example` [n, c, h, w] is a batch of
    inputs, which a network of `load_model` or of a run knows itself. `tolerance` is relative to the largest output,
    `opset` the version of ONNX's operators. A file that is there is replaced with `force` only. `trust_code` is that of
    `load`. With `int8` the network computes in 8-bit integers, in `onnx` and `openvino`; what that does to its size,
    its time in the format's runtime and its answers is the report's `int8`. UsageError for an unknown format, a missing
    example and settings that do not fit, else as `export_onnx`.
    """
    ending = Path(path).suffix.removeprefix(".")
    kind = format or next((name for name, known in ENDINGS.items() if known == ending), ending)
    if kind not in EXPORTERS:
        raise UsageError(f"cannot export to '{kind}'{nearest(kind, EXPORTERS)}; known: {', '.join(EXPORTERS)}")
    known = with_provenance(load(model, trust_code) if isinstance(model, str | Path) else model)
    example = _example(known) if example is None else example
    if int8 is not None:
        return int8_of_network(known.network, example, path, int8, Int8Asked(kind, force=force, opset=opset), tolerance)
    if opset is not None and kind == "pt2":
        raise UsageError("opset is for onnx and openvino, not pt2")
    options = {} if opset is None else {"opset": opset}
    return EXPORTERS[kind](known.network, example, path, tolerance, force, **options)


def _example(model: Compressed) -> Tensor:
    known = model.provenance
    if known.preprocessing is None:
        raise UsageError("the size of this network's input is not known; give export(..., example=IMAGES)")
    return Opened("network", model.network, known.preprocessing, known).example(2)
