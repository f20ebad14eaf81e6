"""The whole job as functions, for networks and images in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn
from torch.utils.data import Dataset

from cnncompress.chains.plan import Budget
from cnncompress.config import DEFAULT_BUDGET, ModelSettings
from cnncompress.correction import decompose_in_order
from cnncompress.errors import NoGradientError, UsageError, nearest
from cnncompress.files.place import resolve
from cnncompress.finetuning import FinetuneResult, FinetuneSettings
from cnncompress.finetuning import finetune as train_in_place
from cnncompress.names.metrics import GUIDED, OF_INPUTS
from cnncompress.network.divergence import batches, to_check
from cnncompress.network.inputs import input_dtype, read_batch
from cnncompress.network.layers import layers_of
from cnncompress.network.profile import profile
from cnncompress.network.provenance import provenance
from cnncompress.pipeline import Opened, run_report
from cnncompress.pipeline.measure import Timing
from cnncompress.planning import plan
from cnncompress.planning.rules import select
from cnncompress.programs.export import ExportReport, export_onnx, export_pt2
from cnncompress.reporting import Report
from cnncompress.runs import load
from cnncompress.runs.lock import writing
from cnncompress.statistics import collect_statistics
from cnncompress.terminal.console import LOG

EXPORTERS = {"onnx": export_onnx, "pt2": export_pt2}


def compress(
    model: nn.Module,
    images: Tensor,
    budget: Budget = DEFAULT_BUDGET,
    *,
    method: str = "auto",
    layers: Sequence[str] = (),
    skip: Sequence[str] = (),
    seed: int = 0,
) -> nn.Module:
    """A new network within `budget`: planned under the metric kronecker and corrected in network order.

    Where no gradient reaches its layers, the metric is data-covariance.

    `images` [n, 3, h, w] are some fifty or more inputs as the network takes them, on the CPU as the network is; no
    labels are needed. `method`, `layers` and `skip` are those of `plan`, which this calls after `collect_statistics`
    and before `decompose_in_order`. A budget of latency needs a table of times: give it to `plan`.

    Raises as these do: UsageError for a budget that no plan meets and for arguments of other types, CompressError for
    a network that cannot be run.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"model is a {type(model).__name__}, not a network: load_model('resnet50').model is one")
    if not isinstance(budget, Budget):
        raise UsageError(f"budget is a {type(budget).__name__}: give Budget(macs=0.5), the share that is to be left")
    images, _ = read_batch(images, input_dtype(model), labels=False)
    if not len(images):
        raise UsageError("there are no images to calibrate on: give some fifty or more")
    metric = GUIDED
    try:
        statistics = collect_statistics(model, batches(images), metric, seed=seed)
    except NoGradientError as error:
        metric = OF_INPUTS
        LOG.warning(f"the metric is {metric}, as {error}")
        statistics = collect_statistics(model, batches(images), metric, seed=seed)
    checked = to_check(images, profile(model, images[:1]).total_macs)
    planned = plan(
        model,
        images[:1],
        method=method,
        budget=budget,
        metric=metric,
        statistics=statistics,
        layers=layers,
        skip=skip,
        images=checked,
    )
    known = layers_of(model)
    left_out = select(known, layers, skip)
    adjust = [name for name in planned.kept if name in known and name not in left_out]
    return decompose_in_order(model, planned, images, statistics=statistics, adjust=adjust, seed=seed)


def finetune(
    model: nn.Module,
    train: Dataset,
    val: Dataset,
    settings: FinetuneSettings | None = None,
    checkpoints: str | Path | None = None,
    *,
    device: str = "auto",
    resume: bool = False,
    teacher: nn.Module | None = None,
) -> FinetuneResult:
    """Train `model` in place; afterwards it holds the weights of the best epoch by top-1 on `val`.

    The weights before training count too, so it is never worse than before. Items of both sets are (image [3, H, W],
    class index). `settings` default to one epoch of SGD with a cosine. `checkpoints` is a folder that training can
    `resume` from, and that one process at a time trains in; without one nothing is left on the disk. `teacher` is the
    network whose answers `model` learns from, its original, for settings with `distill="logits"`.

    Raises UsageError for settings that do not fit, DataError for labels, RunError for files, CompressError where the
    loss is no longer finite.
    """
    settings = settings or FinetuneSettings()
    if checkpoints is not None:
        with writing(resolve(checkpoints)):
            return train_in_place(
                model, train, val, settings, Path(checkpoints), device=device, resume=resume, teacher=teacher
            )
    if resume:
        raise UsageError("resume needs the folder of the checkpoints: finetune(..., checkpoints=FOLDER, resume=True)")
    with tempfile.TemporaryDirectory() as folder:
        return train_in_place(model, train, val, settings, Path(folder, "checkpoints"), device=device, teacher=teacher)


def report(
    *runs: str | Path, data: str | None = None, latency: bool = False, device: str = "auto", trust_code: bool = False
) -> Report:
    """Cost and accuracy of one or more runs beside their originals; `render` makes a table, CSV or JSON of it.

    `data` (as `--data`) has the accuracies measured again, `latency` the networks timed. `trust_code` is that
    of `load`. RunError for a run that cannot be read, UsageError where there is none.
    """
    if not runs:
        raise UsageError("nothing to report on; give at least one run: report('runs/vgg16')")
    if other := next((run for run in runs if not isinstance(run, str | Path)), None):
        raise UsageError(
            f"a report is on runs, which `save` writes, not on a {type(other).__name__}: give their folders"
        )
    settings = ModelSettings.model_validate({"data": data, "device": device, "trust_code": trust_code})
    return run_report([Path(run) for run in runs], settings, Timing(device=device) if latency else None)


def export(
    model: nn.Module | str | Path,
    path: str | Path,
    example: Tensor | None = None,
    *,
    format: str | None = None,
    tolerance: float | None = None,
    force: bool = False,
    trust_code: bool = False,
) -> ExportReport:
    """Write a network, or the network of a run, as one file; it is run and compared before it is in its place.

    `format` is `onnx` or `pt2`, by default what the file is called. `example` [n, c, h, w] is a batch of inputs, which
    a network of `load_model` or of a run knows itself. `tolerance` is relative to the largest output. `trust_code`
    is that of `load`. UsageError for an unknown format or a missing example, else as `export_onnx`.
    """
    kind = format or Path(path).suffix.removeprefix(".")
    if kind not in EXPORTERS:
        raise UsageError(f"cannot export to '{kind}'{nearest(kind, EXPORTERS)}; known: {', '.join(EXPORTERS)}")
    network = model if isinstance(model, nn.Module) else load(model, trust_code)
    return EXPORTERS[kind](network, _example(network) if example is None else example, path, tolerance, force)


def _example(model: nn.Module) -> Tensor:
    known = provenance(model)
    if known is None or known.preprocessing is None:
        raise UsageError("the size of this network's input is not known; give export(..., example=IMAGES)")
    return Opened("network", model, known.preprocessing, known).example(2)
