"""Calibration: which images the statistics come from, and their cache in the run."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from cnncompress.config import DecomposeSettings
from cnncompress.data import Data, make_loader, split
from cnncompress.errors import UsageError
from cnncompress.evaluate import resolve_device
from cnncompress.pipeline.opening import Opened
from cnncompress.spec import LayerStatistics, Plan
from cnncompress.statistics import collect_statistics, load_statistics, save_statistics, statistics_key

STATISTICS = "statistics.safetensors"
EVALUATION_SHARE = 0.5  # of a set without training images: the rest is for calibration


@dataclasses.dataclass
class Calibration:
    """Statistics by layer, their cache key and what should be said about them."""

    statistics: dict[str, LayerStatistics] = dataclasses.field(default_factory=dict)
    key: str = ""
    notes: list[str] = dataclasses.field(default_factory=list)


def apart(data: Data | None, settings: DecomposeSettings) -> Data | None:
    """The data with images to calibrate on (`train`) that are never evaluated on; as they are where none are needed."""
    if settings.metric == "frobenius" or data is None:
        return data
    return split(data, EVALUATION_SHARE, settings.seed)


def calibrate(settings: DecomposeSettings, opened: Opened, chosen: Plan, data: Data | None, out: Path) -> Calibration:
    """The statistics that the metric needs for the layers of a plan, from the cache of the run at `out` if it fits.

    The images are spread evenly over the training images. UsageError where there are none.
    """
    if settings.metric == "frobenius":
        return Calibration()
    if data is None or data.train is None:
        raise UsageError(
            f"metric {settings.metric} needs calibration images; give --data FOLDER, cifar10:ROOT or digits"
        )
    count = min(settings.calibration_images, len(data.train))
    indices = np.unique(np.linspace(0, len(data.train) - 1, count).astype(int)).tolist()
    wanted = {"metric": settings.metric, "images": indices, "seed": settings.seed, "layers": list(chosen.layers)}
    key = statistics_key(opened.model, data.fingerprint, wanted)
    found = load_statistics(out / STATISTICS, key)
    if found is None:
        found = collect_statistics(
            opened.model,
            make_loader(data.train, settings.batch_size, workers=settings.workers, indices=indices),
            settings.metric,
            layers=chosen.layers,
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


@contextmanager
def cache_file(settings: DecomposeSettings, done: Calibration) -> Iterator[list[Path]]:
    """The statistics as a file to take along into the run, where that was asked for and there are any."""
    if not settings.keep_statistics or not done.statistics:
        yield []
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / STATISTICS
        save_statistics(path, done.statistics, done.key)
        yield [path]
