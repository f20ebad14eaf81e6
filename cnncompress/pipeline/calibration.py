"""Calibration: which images the statistics come from, and their cache in the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cnncompress.chains.spec import Call
from cnncompress.config import DecomposeSettings
from cnncompress.data import Data, make_loader, split
from cnncompress.errors import NoGradientError, UsageError
from cnncompress.metrics import LayerStatistics, Metric, get_metric
from cnncompress.names.metrics import DEFAULT, OF_INPUTS
from cnncompress.network.device import resolve_device
from cnncompress.pipeline.opened import Opened
from cnncompress.statistics import collect_statistics, load_statistics, save_statistics, statistics_key

STATISTICS = "statistics.safetensors"
VALUES = 2**28  # numbers in the largest activation of the images that a correction looks at: 1 GiB in float32
EVALUATION_SHARE = 0.5  # of a set without training images: the rest is for calibration


@dataclasses.dataclass
class Calibration:
    """Statistics by layer, their cache key and what should be said about them."""

    statistics: dict[str, LayerStatistics] = dataclasses.field(default_factory=dict)
    key: str = ""
    notes: list[str] = dataclasses.field(default_factory=list)


def metric_of(settings: DecomposeSettings) -> type[Metric]:
    """The metric of the settings; UsageError for one that is not registered."""
    return get_metric(settings.metric or DEFAULT)


def with_gradients(settings: DecomposeSettings, opened: Opened) -> tuple[DecomposeSettings, list[str]]:
    """The settings, and what to say where their metric, that nobody asked for, needs gradients that do not come."""
    metric = metric_of(settings)
    if not settings.assumes_metric or "gradient" not in metric.needs:
        return settings, []
    try:
        collect_statistics(opened.model, [opened.example()], metric.name, positions=1, progress=False)
    except NoGradientError as error:
        return settings.model_copy(update={"metric": OF_INPUTS}), [f"the metric is {OF_INPUTS}, as {error}"]
    return settings, []


def apart(data: Data | None, settings: DecomposeSettings) -> Data | None:
    """The data with images to calibrate on (`train`) that are never evaluated on; as they are where none are needed."""
    if data is None or not settings.uses_images:
        return data
    return split(data, EVALUATION_SHARE, settings.seed)


def calibration_set(
    settings: DecomposeSettings, data: Data | None, limit: int | None = None
) -> tuple[Data, Any, list[int]]:
    """The data, its training images and which of them are for calibration: at most `limit`, spread evenly.

    UsageError where there are none.
    """
    if data is None or data.train is None:
        metric = metric_of(settings)
        what = f"metric {metric.name}" if metric.needs else f"--correct {settings.correct}"
        raise UsageError(f"{what} needs calibration images; give --data FOLDER, cifar10:ROOT or digits")
    count = min(settings.calibration_images, len(data.train), limit or len(data.train))
    return data, data.train, np.unique(np.linspace(0, len(data.train) - 1, count).astype(int)).tolist()


def most_images(calls: Mapping[str, Call]) -> int:
    """How many images may be in memory at once, so that no layer's inputs or outputs take more than `VALUES`."""
    return max(1, VALUES // max(max(_values(call)) for call in calls.values()))


def _values(call: Call) -> tuple[int, int]:
    """Numbers in the input and in the output of a layer on one image."""
    spec, before, after = call.spec, 0, 0
    for height, width in call.sizes:
        rows, columns = spec.output_size((height, width))
        before += spec.in_channels * height * width
        after += spec.out_channels * rows * columns
    return before, after


def calibrate(
    settings: DecomposeSettings, opened: Opened, layers: Iterable[str], data: Data | None, out: Path
) -> Calibration:
    """The statistics that the metric needs for some layers, from the cache of the run at `out` if it fits.

    UsageError where there are no images to calibrate on.
    """
    metric = metric_of(settings)
    if not metric.needs:
        return Calibration()
    data, images, indices = calibration_set(settings, data)
    layers = list(layers)
    wanted = {"metric": settings.metric, "images": indices, "seed": settings.seed, "layers": layers}
    key = statistics_key(opened.model, data.fingerprint, wanted)
    found = load_statistics(out / STATISTICS, key)
    if found is None:
        found = collect_statistics(
            opened.model,
            make_loader(images, settings.batch_size, workers=settings.workers, indices=indices),
            metric.name,
            layers=layers,
            seed=settings.seed,
            device=resolve_device(settings.device),
        )
        opened.model.to("cpu")
    return Calibration(found, key, list(remarks(found)))


def remarks(statistics: Mapping[str, LayerStatistics]) -> Iterator[str]:
    """What a user should know about statistics from too few images."""
    short = [name for name, s in statistics.items() if 0 < s.rows <= s.mean.shape[1]]
    if short:
        first = f"{short[0]}{f' and {len(short) - 1} more' if len(short) > 1 else ''}"
        yield (
            f"{first}: no more input samples than dimensions, so the second moment is regularised strongly; "
            "more --calibration-images would help"
        )


def cache_file(settings: DecomposeSettings, done: Calibration) -> dict[str, Callable[[Path], None]]:
    """The statistics as a side product of the run, where that was asked for and there are any."""
    if not settings.keep_statistics or not done.statistics:
        return {}
    return {STATISTICS: lambda path: save_statistics(path, done.statistics, done.key)}
